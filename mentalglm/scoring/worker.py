"""One engine and the shards it scores: what runs inside each actor of the pool."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from mentalglm import storage
from mentalglm.config import (
    EchoEngineConfig,
    EncoderEngineConfig,
    OpenAIEngineConfig,
    ScoreConfig,
    TfidfEngineConfig,
)
from mentalglm.corpus import CorruptShardError, Posts, ShardReader, unreadable_now
from mentalglm.engine.chat import ChatEncoder
from mentalglm.engine.echo import EchoEngine
from mentalglm.engine.model import ResolvedModel, resolve_model
from mentalglm.engine.protocol import Completion, Engine, Request
from mentalglm.errors import ConfigError, InputError, InternalError, InterruptedRunError, UserError
from mentalglm.scoring.cascade import Inquiry, explained
from mentalglm.scoring.duplicates import (
    NO_DUPLICATES,
    CorpusDuplicates,
    ShardDuplicates,
    copies_among,
    copy_of,
    duplicates_within,
)
from mentalglm.scoring.order import asking_order
from mentalglm.scoring.predictions import Outcome, prediction_schema, prediction_table
from mentalglm.scoring.questions import Question, questions_of
from mentalglm.scoring.rounds.unexplained import Labelled, UnexplainedRows
from mentalglm.scoring.run.commit import Effort, ShardCommit
from mentalglm.scoring.run.lease import check_fence
from mentalglm.scoring.run.ledger import Keep, Ledger
from mentalglm.scoring.throughput import EffortMeter
from mentalglm.tasks import Task

_REPORT_INTERVAL_S = 1.0
_MAX_DEATHS = 4
_IDLE_S = 0.5
_MAX_WAIT_S = 900.0

Rows = Mapping[str, Sequence[int]]
"""Key of a question -> rows of a shard, in order."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a worker must know. Small: it goes to every actor; the plan is read from the run's folder."""

    config: ScoreConfig
    tasks: tuple[Task, ...]
    model: ResolvedModel | None
    provenance: dict[str, Any]
    lease_epoch: int
    folder: str = "_run"
    """Where below the run's folder the shards are committed."""
    rows: Mapping[int, Rows] = field(default_factory=dict)
    """shard -> the rows to ask for; a shard that is not named here: all of them."""
    explains: Sequence[tuple[int, int, int]] | None = None
    """Where explanations are added to a finished run: `parts` of `UnexplainedRows`."""
    num_gpus: float = 0
    shards_in_flight: int = 1
    started: float = field(default_factory=time.time)
    """When this attempt at the run began, s since 1970."""

    @property
    def questions(self) -> tuple[Question, ...]:
        """What is asked about each post."""
        return questions_of(self.config, self.tasks)


class ShardScorer:
    """A callable for Ray Data's `map_batches`, one call for each lane: asks the board for shards until there are none.

    Several lanes run at once in the event loop of the actor, so that the engine does not drain at a shard's end.
    """

    def __init__(self, spec: RunSpec, board: Any) -> None:
        self._spec = spec
        self._board = board
        storage.configure(spec.config.s3)
        uri = spec.config.output.uri
        self._ledger = Ledger(uri, partial(check_fence, uri, spec.lease_epoch), spec.folder)
        self._engine: Engine | None = None
        self._error: UserError | None = None
        self._meter = EffortMeter(spec.started)
        self._num_restarts = 0  # of the engine, as far as they are in a commit
        self._suspects = asyncio.Lock()
        self._suspect: int | None = None
        """The shard that holds it."""
        self._reading = ThreadPoolExecutor(1)  # in order: the reader goes forward through a row group
        self._writing = ThreadPoolExecutor(2)
        self._copying = ThreadPoolExecutor(8)
        self._corpus_duplicates: CorpusDuplicates | None = None
        try:
            self._plan = self._ledger.read_plan()
            self._reader = ShardReader(spec.config.input, self._plan)
            self._schema = prediction_schema(spec.config, self._plan.kept_schema)
            self._unexplained: UnexplainedRows | None = None
            if spec.explains is not None:
                self._unexplained = UnexplainedRows(self._ledger, spec.config, spec.questions, spec.explains)
            self._engine = _build_engine(spec)
            self._meter.engine_started()
        except UserError as error:
            # Told to the board: an actor that fails to start is only started again.
            self._error = error
        except Exception as error:
            self._error = InternalError.withholding(error)

    async def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """{"lane": [number]} -> the same, when nothing is left to do. Results and errors go to the board."""
        [lane] = map(int, batch["lane"])
        if await self._board.begin.remote(lane):
            self._meter.is_a_replacement()
        while (assigned := await self._board.next.remote(lane)) is not None:
            shard, num_deaths = assigned
            if shard is None:
                await asyncio.sleep(_IDLE_S)
                continue
            commit = await self._try(lane, shard, num_deaths) if self._error is None else None
            if commit is None:
                assert self._error is not None
                # As data: Ray would hand over a traceback, and not the error.
                await self._board.fail.remote(type(self._error).__name__, str(self._error))
                break
            await self._board.commit.remote(lane, shard, commit.model_dump_json())
        return batch

    async def _try(self, lane: int, shard: int, num_deaths: int) -> ShardCommit | None:
        """None: there is an error, and it ends the run."""
        rows = self._spec.rows.get(shard)
        try:
            if not num_deaths:
                await self._board.start.remote(lane)
                return await self._score(shard, rows)
            async with self._suspects:
                self._suspect = shard
                await self._board.start.remote(lane)
                return await self._score_suspect(shard, rows, num_deaths)
        except UserError as error:
            self._error = error
        except OSError as error:  # of reading: storage.py has words of its own
            self._error = unreadable_now(self._spec.config.input.uri, error)
        except Exception as error:  # its message may quote a post, and Ray would log it
            self._error = InternalError.withholding(error)
        return None

    async def _score_suspect(self, shard: int, rows: Rows | None, num_deaths: int) -> ShardCommit:
        """A shard whose worker's whole process has died, perhaps of it: tried again, one at a time, then given up."""
        loop = asyncio.get_running_loop()
        if commit := await loop.run_in_executor(self._writing, self._ledger.read_commit, shard):
            return commit  # the worker died after its work was done
        if num_deaths < _MAX_DEATHS:
            return await self._score(shard, rows)
        if num_deaths == _MAX_DEATHS:
            return await self._score(shard, rows, given_up="worker_crash")
        num_rows = self._plan.shard(shard).num_rows  # not even reading it is safe
        return await loop.run_in_executor(
            self._writing, self._ledger.commit_quarantined, shard, num_rows, "worker_crash"
        )

    async def _score(self, shard: int, rows: Rows | None, given_up: str | None = None) -> ShardCommit:
        """Reads, asks, commits. `given_up`: why the engine is not asked."""
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            posts = await loop.run_in_executor(self._reading, self._read, shard)
        except CorruptShardError as error:
            if error.reason in ("input_missing", "input_changed"):  # may pass; a verdict would stand for ever
                raise InputError(
                    f"input.uri: {error.file} is gone or has changed while it was scored ({error.reason}); "
                    "put it back and run the same command again, or begin a new run in another folder"
                ) from None
            num_rows = self._plan.shard(shard).num_rows
            return await loop.run_in_executor(
                self._writing, self._ledger.commit_quarantined, shard, num_rows, error.reason
            )
        is_first = rows is None and self._unexplained is None
        duplicates = await self._find_duplicates(shard, posts) if is_first else NO_DUPLICATES
        copies = {} if given_up else duplicates.copies
        if self._unexplained is not None:
            labelled = await loop.run_in_executor(self._copying, self._unexplained.of, shard, posts)
            outcomes = await self._explained(shard, posts, labelled, given_up)
        elif rows is not None and self._spec.config.dedup != "off" and not given_up:
            outcomes = await self._retried(shard, posts, rows)
        else:
            picked: Rows = rows or {each.key: range(len(posts)) for each in self._spec.questions}
            own = {task: [row for row in each if row not in copies] for task, each in picked.items()}
            outcomes = await self._outcomes(shard, posts, own, given_up)
        if copies:
            outcomes = await self._with_copies(shard, posts, outcomes, copies)
        keep = None
        if duplicates.originals and not given_up:  # else nobody has asked for them: their copies will
            assert self._corpus_duplicates is not None
            keep = partial(self._corpus_duplicates.keep, self._plan.shard(shard), duplicates.originals, posts)
        assert self._engine is not None
        num_restarts, self._num_restarts = self._engine.num_restarts - self._num_restarts, self._engine.num_restarts
        effort = self._meter.take(self._engine.seconds)
        return await loop.run_in_executor(
            self._writing, self._commit, shard, posts, outcomes, started, num_restarts, effort, keep
        )

    def _read(self, shard: int) -> Posts:
        with self._meter.step("read"):
            return self._reader.read(self._plan.shard(shard))

    async def _outcomes(
        self, shard: int, posts: Posts, picked: Rows, given_up: str | None, labelled: Labelled | None = None
    ) -> dict[str, dict[int, Outcome]]:
        """Key of a question -> row -> its outcome, for the rows that are picked, in order. `labelled`: what is known of
        them, where they are to be explained."""
        assert self._engine is not None
        questions = self._spec.questions
        outcomes = {
            task: {row: Outcome(posts.statuses[row] or "engine_error", posts.reasons[row] or given_up) for row in rows}
            for task, rows in picked.items()
        }
        if labelled is not None:
            outcomes = {
                task: {row: explained(labelled[task][row], failed) for row, failed in rows.items()}
                for task, rows in outcomes.items()
            }
        slots = [
            (row, questions[number])
            for row, number in asking_order(picked, questions)
            if posts.statuses[row] is None and given_up is None
        ]
        inquiries = await asyncio.to_thread(self._inquire, posts, slots, labelled)
        counts: Counter[str] = Counter(each.status for rows in outcomes.values() for each in rows.values())
        counts["engine_error" if labelled is None else "ok"] -= len(inquiries)  # not asked yet
        reported = time.monotonic()

        def follow_up(index: int, completion: Completion) -> Request | None:
            with self._meter.step("parse"):
                return inquiries[index].take(completion)

        async for index, _ in self._engine.complete([inquiry.request for inquiry in inquiries], follow_up):
            row, question = slots[index]
            inquiry = inquiries[index]
            outcome = inquiry.outcome
            assert outcome is not None
            outcomes[question.key][row] = outcome
            self._meter.count(
                num_prefill_tokens=inquiry.num_prefill_tokens,
                num_cached_tokens=inquiry.num_cached_tokens,
                num_wasted_tokens=inquiry.num_wasted_tokens,
            )
            counts[outcome.status] += 1
            if time.monotonic() - reported >= _REPORT_INTERVAL_S:
                reported = time.monotonic()
                self._report(shard, counts)
        return outcomes

    def _inquire(self, posts: Posts, slots: Sequence[tuple[int, Question]], labelled: Labelled | None) -> list[Inquiry]:
        with self._meter.step("render"):
            return [
                Inquiry(
                    self._spec.config,
                    each,
                    posts.texts[row],
                    posts.text_hashes[row],
                    None if labelled is None else labelled[each.key][row],
                )
                for row, each in slots
            ]

    async def _find_duplicates(self, shard: int, posts: Posts) -> ShardDuplicates:
        place = self._plan.shard(shard)
        if self._spec.config.dedup == "off":
            return NO_DUPLICATES
        if self._spec.config.dedup == "shard":
            return duplicates_within(posts, place)
        loop = asyncio.get_running_loop()
        if self._corpus_duplicates is None:
            self._corpus_duplicates = await loop.run_in_executor(
                self._reading, CorpusDuplicates, self._ledger, self._plan
            )
        return await loop.run_in_executor(self._reading, self._corpus_duplicates.of, place)

    async def _with_copies(
        self, shard: int, posts: Posts, outcomes: dict[str, dict[int, Outcome]], copies: Mapping[int, int]
    ) -> dict[str, dict[int, Outcome]]:
        """The outcomes, and those of the rows that get another post's. Waits for earlier shards that make them."""
        first_row = self._plan.shard(shard).first_row
        elsewhere = await self._from_elsewhere(shard, [of for of in copies.values() if of < first_row], outcomes)
        found: dict[int, Mapping[str, Outcome]] = {}
        for row, original in copies.items():
            if original >= first_row:
                of = original - first_row
                found[row] = {task: copy_of(rows[of], posts.ids[of]) for task, rows in outcomes.items()}
            elif original in elsewhere:
                found[row] = elsewhere[original]
        # An original that cannot be read, or whose shard is lost for long: its copies are asked for themselves.
        left = [row for row in copies if row not in found]
        asked = await self._outcomes(shard, posts, dict.fromkeys(outcomes, left), None)
        merged = {
            task: {**rows, **asked[task], **{row: results[task] for row, results in found.items()}}
            for task, rows in outcomes.items()
        }
        return {task: {row: rows[row] for row in sorted(rows)} for task, rows in merged.items()}

    async def _retried(self, shard: int, posts: Posts, rows: Rows) -> dict[str, dict[int, Outcome]]:
        """The outcomes of rows that are retried, each text among them asked for once."""
        copies = {task: copies_among(posts, each) for task, each in rows.items()}
        own = {task: [row for row in each if row not in copies[task]] for task, each in rows.items()}
        outcomes = await self._outcomes(shard, posts, own, None)
        for task, originals in copies.items():
            asked = outcomes[task]
            asked |= {row: copy_of(asked[original], posts.ids[original]) for row, original in originals.items()}
        return {task: {row: outcomes[task][row] for row in each} for task, each in rows.items()}

    async def _explained(
        self, shard: int, posts: Posts, labelled: Labelled, given_up: str | None
    ) -> dict[str, dict[int, Outcome]]:
        """The outcomes of rows that are to be explained, with `dedup` each text among them asked for once."""
        copies: dict[str, dict[int, int]] = {task: {} for task in labelled}
        if self._spec.config.dedup != "off":
            for task, known in labelled.items():
                copies[task] = {
                    row: original
                    for row, original in copies_among(posts, known).items()
                    if (known[row].labels, known[row].parents) == (known[original].labels, known[original].parents)
                }
        own = {task: [row for row in known if row not in copies[task]] for task, known in labelled.items()}
        outcomes = await self._outcomes(shard, posts, own, given_up, labelled)
        for task, originals in copies.items():
            asked = outcomes[task]
            for row, original in originals.items():  # tokens are paid for once
                of = asked[original]
                asked[row] = replace(
                    labelled[task][row], explanation=of.explanation, finish_reason=of.finish_reason, flags=of.flags
                )
        return {task: {row: outcomes[task][row] for row in known} for task, known in labelled.items()}

    async def _from_elsewhere(
        self, shard: int, originals: Sequence[int], outcomes: dict[str, dict[int, Outcome]]
    ) -> dict[int, dict[str, Outcome]]:
        """Row of the corpus -> task -> result for its copies, for originals in earlier shards. Waits for those."""
        if not originals:
            return {}
        loop = asyncio.get_running_loop()
        duplicates = self._corpus_duplicates
        assert duplicates is not None
        missing = duplicates.by_shard(originals)
        found: dict[int, dict[str, Outcome]] = {}
        is_suspect = self._suspect == shard
        if is_suspect:  # it has been asked for, and what it waits for may be another suspect
            self._suspect = None
            self._suspects.release()
        await self._board.set_waiting.remote(shard, True)
        try:
            deadline = time.monotonic() + _MAX_WAIT_S
            while True:
                each = [
                    loop.run_in_executor(self._copying, duplicates.results, source, rows)
                    for source, rows in missing.items()
                ]
                for source, results in zip(list(missing), await asyncio.gather(*each), strict=True):
                    if results is not None:
                        found |= results
                        del missing[source]
                if not missing or time.monotonic() > deadline:
                    return found
                if await self._board.is_stopped.remote():
                    raise InterruptedRunError("the run was stopped; run the same command again")
                if await self._board.is_heard_of.remote(list(missing)):
                    deadline = time.monotonic() + _MAX_WAIT_S
                self._report(shard, Counter(each.status for rows in outcomes.values() for each in rows.values()))
                await asyncio.sleep(_IDLE_S)
        finally:
            if is_suspect:
                await self._suspects.acquire()
                self._suspect = shard
            await self._board.set_waiting.remote(shard, False)

    def _commit(
        self,
        shard: int,
        posts: Posts,
        outcomes: dict[str, dict[int, Outcome]],
        started: float,
        num_restarts: int,
        effort: Effort,
        keep: Keep | None,
    ) -> ShardCommit:
        assert self._engine is not None
        with self._meter.step("write"):
            tables: dict[str, pa.Table] = {}
            for task, rows in outcomes.items():
                others = Outcome("engine_error")  # rows that are not picked, and not written
                table = prediction_table(self._schema, posts, [rows.get(row, others) for row in range(len(posts))])
                tables[task] = table if len(rows) == len(posts) else table.take(list(rows))
            return self._ledger.commit(
                shard,
                tables,
                {task: list(rows.values()) for task, rows in outcomes.items()},
                self._spec.provenance,
                engine=self._engine.description,
                seconds=time.monotonic() - started,
                effort=effort,
                num_engine_restarts=num_restarts,
                keep=keep,
            )

    def _report(self, shard: int, counts: Counter[str]) -> None:
        self._board.report.remote(shard, {status: n for status, n in counts.items() if n > 0})


def _encoder(config: ScoreConfig) -> ChatEncoder:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(config.model).path)
    return ChatEncoder(tokenizer, max_prompt_tokens=config.generation.max_prompt_tokens)


def _build_engine(spec: RunSpec) -> Engine:
    config, generation = spec.config.engine, spec.config.generation
    if isinstance(config, EchoEngineConfig):
        return EchoEngine(config, spec.tasks, _encoder(spec.config) if config.tokenize else None)
    if isinstance(config, OpenAIEngineConfig):
        from mentalglm.engine.openai import OpenAIEngine

        return OpenAIEngine(config, generation)
    model = _model_here(spec)
    if isinstance(config, EncoderEngineConfig):
        from mentalglm.engine.encoder import EncoderEngine

        [task] = spec.tasks
        return EncoderEngine(config, generation, model, task, num_gpus=spec.num_gpus)
    if isinstance(config, TfidfEngineConfig):
        from mentalglm.engine.tfidf import TfidfEngine

        return TfidfEngine(model, spec.tasks[0])
    from mentalglm.engine.merge import merged
    from mentalglm.engine.supervisor import SupervisedEngine
    from mentalglm.engine.vllm import VllmEngine

    return SupervisedEngine(
        partial(VllmEngine, config, generation, merged(model), num_gpus=int(spec.num_gpus)),
        row_timeout_s=config.row_timeout_s,
        max_restarts=config.max_restarts,
    )


def _model_here(spec: RunSpec) -> ResolvedModel:
    """The model that the driver has found, on this node. Raises: ConfigError where this node has another one."""
    assert spec.model is not None
    model = spec.model
    folders = [model.path, *(adapter.path for adapter in model.adapters.values() if adapter is not None)]
    if all(Path(folder).is_dir() for folder in folders):
        return model
    model = resolve_model(spec.config.model)  # another node than the driver's, which found them there
    if (model.digest, model.adapter_digests) != (spec.model.digest, spec.model.adapter_digests):
        raise ConfigError(
            f"model.path = {model.name!r}: this node has other files under that name, or those of its adapters, "
            "than the driver's node; put the same on every node, or pin model.revision"
        )
    return model
