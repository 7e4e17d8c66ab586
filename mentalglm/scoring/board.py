"""What driver and lanes tell each other while a run goes on."""

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

_MAX_HOLDERS = 3


class RunBoard:
    """What driver and lanes tell each other while a run goes on; a Ray actor.

    Shards are pulled: a fast engine takes more of them. One whose lane begins anew (its worker died) is given out
    again first. When none is left to give out, the shards of lanes that have been silent for long are given to idle
    ones too: a lost node must not hold up the end of a run, and whoever commits first is right.
    """

    def __init__(self, pending: Sequence[int], silence_s: float = 300.0) -> None:
        self._left = deque(pending)
        self._silence_s = silence_s
        self._begun: set[int] = set()
        self._held: dict[int, _Held] = {}
        self._deaths: Counter[int] = Counter()
        self._done: set[int] = set()
        self._commits: list[str] = []
        self._error: tuple[str, str] | None = None
        self._stopped = False

    def begin(self, lane: int) -> bool:
        """The lane starts. True: again, after its worker's death."""
        is_again = lane in self._begun
        self._begun.add(lane)
        held = self._held.pop(lane, None)
        if held and held.is_started and not held.is_waiting:
            self._deaths[held.shard] += 1
        if held and held.shard not in self._done and all(held.shard != each.shard for each in self._working()):
            self._left.appendleft(held.shard)
        return is_again

    def next(self, lane: int) -> tuple[int | None, int] | None:
        """(shard, how often a worker died over it), (None, 0): wait, or None: nothing left to do."""
        shard = None
        if not self._stopped and self._left:
            shard = self._left.popleft()
        elif not self._stopped:
            working = self._working()
            busy = {held.shard for held in working if self._is_alive(held)}
            # A few times: what silences one lane after the other may be the shard.
            busy |= {shard for shard, n in Counter(held.shard for held in working).items() if n >= _MAX_HOLDERS}
            shard = next((held.shard for held in working if held.shard not in busy), None)
        if shard is None:
            return (None, 0) if self._working() and not self._stopped else None
        self._held[lane] = _Held(shard, time.monotonic())
        return shard, self._deaths[shard]

    def start(self, lane: int) -> None:
        """The lane's shard does not wait any more: if its worker dies now, it may be of it."""
        if lane in self._held:
            self._held[lane].is_started = True

    def set_waiting(self, shard: int, is_waiting: bool) -> None:
        """The shard waits for the results of others, or goes on: a worker that dies meanwhile does not die of it."""
        for held in self._held.values():
            if held.shard == shard:
                held.is_waiting = is_waiting

    def report(self, shard: int, statuses: dict[str, int]) -> None:
        """Predictions of a shard so far, by status."""
        for held in self._held.values():
            if held.shard == shard:
                held.statuses, held.heard_of = statuses, time.monotonic()

    def commit(self, lane: int, shard: int, record: str) -> None:
        """The shard is committed: its record, as JSON. The lane may have been given up meanwhile."""
        if lane in self._held and self._held[lane].shard == shard:
            del self._held[lane]
        if shard not in self._done:
            self._done.add(shard)
            self._commits.append(record)

    def fail(self, kind: str, message: str) -> None:
        """A worker cannot go on: class and message of a UserError. What others have begun they finish."""
        self._error = self._error or (kind, message)
        self._stopped = True

    def stop(self) -> None:
        """No lane begins another shard."""
        self._stopped = True

    def is_stopped(self) -> bool:
        """Whether no lane begins another shard: who waits for one waits in vain."""
        return self._stopped

    def is_heard_of(self, shards: Sequence[int]) -> bool:
        """Whether a lane that works on one of these has been heard of lately."""
        return any(held.shard in shards and self._is_alive(held) for held in self._working())

    def news(self) -> "News":
        """What happened since the last call, and what goes on."""
        commits, self._commits = self._commits, []
        running: Counter[str] = Counter()
        for statuses in {held.shard: held.statuses for held in self._working()}.values():
            running.update(statuses)
        return News(commits, dict(running), self._error, num_working=sum(map(self._is_alive, self._working())))

    def _working(self) -> "list[_Held]":
        return [held for held in self._held.values() if held.shard not in self._done]

    def _is_alive(self, held: "_Held") -> bool:
        return time.monotonic() - held.heard_of <= self._silence_s


@dataclass(frozen=True, slots=True)
class News:
    """What the board tells the driver."""

    commits: list[str]
    """Records of the shards committed since the last time, as JSON."""
    running: dict[str, int]
    """Predictions that are not committed, by status."""
    error: tuple[str, str] | None
    """Class and message of the UserError that ends the run."""
    num_working: int
    """Lanes with a shard that have been heard of lately."""


@dataclass(slots=True)
class _Held:
    """A shard that a lane works on."""

    shard: int
    heard_of: float
    statuses: dict[str, int] = field(default_factory=dict)
    is_started: bool = False
    is_waiting: bool = False
