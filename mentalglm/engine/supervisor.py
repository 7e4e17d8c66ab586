"""An engine that dies or hangs is replaced, and the row that does it is found and given up, that row alone.

Whoever was running when an engine ended is a suspect. Suspects are tried again on the next engine, the square root of
their number at a time; the rows of a group that ends it too, one by one. All else waits meanwhile. A row that ends an
engine while it runs alone is guilty. What is saved is restarts, a minute each: with p guilty rows and e engines that
were ended by something else there are at most 3p + e of them, however many rows run at once. For a row is running in
at most one end of each kind: in full operation, in a group, alone; after that it is either answered or given up.

Two ends by chance can still convict an innocent row: if the second comes while a suspect runs alone.
"""

import asyncio
import logging
import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mentalglm.engine.chat import EncodedPrompt
from mentalglm.engine.occupancy import Occupancy
from mentalglm.engine.protocol import Completion, FollowUp, Request
from mentalglm.errors import InterruptedRunError, UserError
from mentalglm.tasks import Prompt

logger = logging.getLogger(__name__)

_MAX_CONVICTED_IN_A_ROW = 100
_TRIALS = {"group": "in a group", "alone": "alone"}


class EngineDiedError(Exception):
    """The engine's process is gone. Known to the supervisor alone: a run sees completions, or InterruptedRunError."""


class BareEngine(Protocol):
    """An engine that runs until it dies. Made by a blocking call, in any thread."""

    @property
    def description(self) -> dict[str, str]:
        """See `Engine.description`. Works on a dead engine too."""
        ...

    @property
    def num_slots(self) -> int:
        """Rows that it works on at once."""
        ...

    @property
    def num_queued(self) -> int:
        """Rows more that it pays to give it, so that none of its slots waits for us."""
        ...

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt | None]:
        """One entry for each prompt, in order; None where it does not fit. Blocks; works on a dead engine too."""
        ...

    async def generate(self, request: Request, encoded: EncodedPrompt) -> Completion:
        """One row. Cancelling it frees its place in the engine. Raises: EngineDiedError."""
        ...

    async def is_well(self) -> bool:
        """Whether it answers a prompt that is no row's."""
        ...

    async def close(self) -> None:
        """Ends an engine that is well."""
        ...

    async def kill(self) -> None:
        """Ends an engine in any state. Its processes are gone and what they held is free when this returns."""
        ...


class SupervisedEngine:
    """An `Engine` that outlives the engines that `start` makes; used in one event loop.

    Blocks until the first one is there, and raises what `start` raises. `row_timeout_s` is both how long a row may run,
    and how long an engine with rows may be without a finished one before it counts as hanging. After `max_restarts`
    engines in a row that found no guilty row, or answered nothing, and when one cannot be started, all calls end with
    InterruptedRunError.
    """

    def __init__(self, start: Callable[[], BareEngine], *, row_timeout_s: float, max_restarts: int) -> None:
        self._start = start
        self._timeout_s = row_timeout_s
        self._max_restarts = max_restarts
        self._num_restarts = 0
        self._num_futile_restarts = 0
        """Since a guilty row was found by an engine that answers others: such restarts were not in vain."""
        self._num_convicted = 0
        """Since the last answer. An engine that answers nothing is itself at fault, not one row after the other: so
        after a conviction without an answer before it the next engine must answer something."""
        self._engine = start()
        self._is_up = True
        self._occupancy = Occupancy(self._engine.num_slots)
        self._recovery: asyncio.Task[None] | None = None
        self._failure: UserError | None = None
        # A row is in one of these three, or finished, or withdrawn.
        self._waiting: deque[_Row] = deque()
        self._groups: deque[list[_Row]] = deque()
        self._running: OrderedDict[_Row, asyncio.Task[None]] = OrderedDict()  # in order of starting
        self._trial: Literal["group", "alone"] | None = None
        """What the running rows are, while suspects are being tried; None in full operation."""
        self._is_suspect = False
        """A running row was withdrawn, and nothing was answered since: it may have left the engine hanging, for which
        the row that is tried next is not to be blamed."""
        self._last_finish = -math.inf
        self._watch: asyncio.TimerHandle | None = None
        self._cancelled: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly

    @property
    def description(self) -> dict[str, str]:
        """What answers, for the manifest."""
        return self._engine.description

    @property
    def num_restarts(self) -> int:
        """Engines that were started after the first."""
        return self._num_restarts

    @property
    def seconds(self) -> dict[str, float]:
        """See `Engine.seconds`."""
        return self._occupancy.seconds()

    async def complete(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> AsyncIterator[tuple[int, Completion]]:
        """See `Engine.complete`. Raises: InterruptedRunError when no engine is left to answer."""
        prompts = await asyncio.to_thread(self._engine.encode, [request.prompt for request in requests])
        finished: asyncio.Queue[_Finished] = asyncio.Queue()
        rows: dict[int, _Row] = {}
        for index, (request, encoded) in enumerate(zip(requests, prompts, strict=True)):
            if encoded is None:
                finished.put_nowait((index, Completion(text="", finish_reason="too_long")))
            else:
                rows[index] = _Row(index, request, encoded, finished)
        num_unfinished = len(requests)
        try:
            self._waiting.extend(rows.values())
            self._dispatch()
            while num_unfinished:
                index, outcome = await finished.get()
                if isinstance(outcome, Exception):
                    raise outcome
                if follow_up is not None and (following := follow_up(index, outcome)) is not None:
                    rows[index].request = following
                    self._waiting.appendleft(rows[index])
                    self._dispatch()
                    continue
                num_unfinished -= 1
                rows.pop(index, None)  # its last request may be large
                yield index, outcome
        finally:
            if num_unfinished:
                self._withdraw(rows.values())

    async def close(self) -> None:
        """Ends the engine. Rows that are still asked for end with InterruptedRunError."""
        self._fail(InterruptedRunError("the engine was closed; what is scored is kept: run the same command again"))
        if self._watch is not None:
            self._watch.cancel()
        if self._recovery is not None:
            await asyncio.wait({self._recovery})  # a start cannot be called off
        if self._cancelled:
            await asyncio.wait(self._cancelled, timeout=10)
        if self._is_up:
            self._is_up = False
            await self._engine.close()

    def _dispatch(self) -> None:
        """Starts what may run now. To be called whenever that may have changed."""
        self._start_rows()
        self._occupancy.note(len(self._running), is_recovering=not self._is_up or self._trial is not None)

    def _start_rows(self) -> None:
        if self._failure is not None:
            self._fail(self._failure)
        if not self._is_up:
            if self._recovery is None and (self._groups or self._waiting):
                self._recovery = asyncio.create_task(self._recover())
            return
        if self._groups or self._trial is not None:
            if self._running:
                return
            self._trial = None
            if self._groups:
                group = self._groups.popleft()
                self._trial = "group" if len(group) > 1 else "alone"
                for row in group:
                    self._run(row)
                return
        while self._waiting and len(self._running) < self._engine.num_slots + self._engine.num_queued:
            self._run(self._waiting.popleft())

    def _run(self, row: "_Row") -> None:
        row.started = asyncio.get_running_loop().time()
        self._running[row] = asyncio.create_task(self._generate(row))
        if self._watch is None:
            self._watch_silence(row.started + self._timeout_s)

    async def _generate(self, row: "_Row") -> None:
        outcome: Completion | Exception
        try:
            outcome = await self._engine.generate(row.request, row.encoded)
        except Exception as error:
            outcome = error
        if self._running.get(row) is not asyncio.current_task():  # cancelled, but could not be stopped any more
            return
        if isinstance(outcome, EngineDiedError):
            self._bury("engine_crash")
            return
        self._finish(row, outcome)
        if isinstance(outcome, Completion) and outcome.finish_reason != "error":
            self._last_finish = asyncio.get_running_loop().time()
            self._num_convicted = 0
            self._is_suspect = False
            self._expire()
        self._dispatch()

    def _finish(self, row: "_Row", outcome: Completion | Exception) -> None:
        """The only way out of `_running` with a result."""
        del self._running[row]
        row.finished.put_nowait((row.index, outcome))

    def _finish_failed(self, row: "_Row", error: str) -> None:
        self._finish(row, Completion(text="", finish_reason="error", flags=row.encoded.flags, error=error))

    def _expire(self) -> None:
        """Gives up rows that are over their time. Called as another row finishes, which clears the engine: before
        that it may be the engine that hangs, and then all its rows get over their time."""
        overdue = self._last_finish - self._timeout_s
        while self._running and (row := next(iter(self._running))).started <= overdue:
            self._cancel(self._running[row])
            self._finish_failed(row, "timeout")

    def _watch_silence(self, at: float) -> None:
        self._watch = asyncio.get_running_loop().call_at(at, self._check_silence)

    def _check_silence(self) -> None:
        """The engine hangs when nothing finished for the whole timeout though a row was running."""
        self._watch = None
        if not self._running:
            return
        silent_since = max(self._last_finish, next(iter(self._running)).started)
        if asyncio.get_running_loop().time() < silent_since + self._timeout_s:
            self._watch_silence(silent_since + self._timeout_s)
        else:
            self._bury("engine_hang")

    def _bury(self, end: Literal["engine_crash", "engine_hang"]) -> None:
        """The engine has ended, or must be: its rows are suspects, or guilty."""
        self._is_up = False
        suspects = list(self._running)
        logger.warning(
            "the engine %s after %d restarts: %d rows were running, %s",
            "died" if end == "engine_crash" else "hangs and is ended",
            self._num_restarts,
            len(suspects),
            "all are suspects" if self._trial is None else f"suspects tried {_TRIALS[self._trial]}",
        )
        for task in self._running.values():
            self._cancel(task)
        if self._trial == "alone" and not self._is_suspect:
            for row in suspects:
                self._finish_failed(row, end)
            self._num_convicted += 1
            if self._num_convicted == 1:
                self._num_futile_restarts = 0
        else:
            size = math.isqrt(len(suspects)) if self._trial is None else 1
            groups = [suspects[at : at + size] for at in range(0, len(suspects), size)]
            self._groups.extendleft(reversed(groups))
            self._running.clear()
        self._trial = None
        self._occupancy.note(0, is_recovering=True)
        self._recovery = asyncio.create_task(self._recover(self._engine, end))

    async def _recover(self, ended: BareEngine | None = None, end: str = "engine_crash") -> None:
        """Clears away the engine that ended, and starts another if there is work for it: else the next call does."""
        try:
            if ended is not None:
                await ended.kill()
            while not self._is_up and (self._groups or self._waiting):
                if self._num_futile_restarts >= self._max_restarts:
                    what = "died" if end == "engine_crash" else "hung"
                    raise InterruptedRunError(
                        f"engine.max_restarts = {self._max_restarts}: the engine {what} once more; its log has the "
                        "cause. What is scored is kept: mend it or raise engine.max_restarts, and run the same command "
                        "again"
                    )
                self._num_restarts += 1
                self._num_futile_restarts += 1
                self._engine = await asyncio.to_thread(self._start)
                self._is_suspect = False
                self._is_up = self._num_convicted <= 1 or await self._is_well()
        except InterruptedRunError as error:
            self._fail(error)
        except UserError as error:
            self._fail(
                InterruptedRunError(
                    f"the engine died and could not be started again ({error}). What is scored is kept: mend the cause "
                    "and run the same command again"
                )
            )
        except Exception as error:  # its message may quote a post
            self._fail(
                InterruptedRunError(
                    f"the engine died and could not be started again ({type(error).__name__}); its log has the cause. "
                    "What is scored is kept: mend it and run the same command again"
                )
            )
        finally:
            self._recovery = None
        self._dispatch()

    async def _is_well(self) -> bool:
        """Whether the new engine answers at all; then the rows before were guilty, but for very many in a row."""
        try:
            is_well = await asyncio.wait_for(self._engine.is_well(), self._timeout_s)
        except TimeoutError:
            is_well = False
        if not is_well:
            await self._engine.kill()
        elif self._num_convicted < _MAX_CONVICTED_IN_A_ROW:
            self._num_futile_restarts = 0
        return is_well

    def _fail(self, error: UserError) -> None:
        """Ends all calls, now and from now on, with `error`."""
        self._failure = self._failure or error
        for row in [*self._waiting, *(row for group in self._groups for row in group)]:
            row.finished.put_nowait((row.index, self._failure))
        self._waiting.clear()
        self._groups.clear()
        for row, task in list(self._running.items()):
            self._cancel(task)
            self._finish(row, self._failure)
        self._trial = None

    def _withdraw(self, rows: "Iterable[_Row]") -> None:
        """Takes back the rows of a call that nobody reads any more."""
        gone = set(rows)
        self._waiting = deque(row for row in self._waiting if row not in gone)
        groups = ([row for row in group if row not in gone] for group in self._groups)
        self._groups = deque(group for group in groups if group)
        for row in gone & self._running.keys():
            self._is_suspect = True
            self._cancel(self._running.pop(row))
        self._dispatch()

    def _cancel(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        self._cancelled.add(task)
        task.add_done_callback(self._cancelled.discard)


@dataclass(slots=True, eq=False)
class _Row:
    """A request on its way."""

    index: int
    request: Request
    """Replaced by the one that follows it up."""
    encoded: EncodedPrompt
    finished: "asyncio.Queue[_Finished]"
    """Of the call that it belongs to."""
    started: float = -math.inf
    """When it began to run, the last time; s, the event loop's clock."""


_Finished = tuple[int, Completion | Exception]
