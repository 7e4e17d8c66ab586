"""Retries: whatever happens and whenever, each row is in `data/` once, and in the end with its last result."""

import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mentalglm import storage
from mentalglm.corpus import Posts
from mentalglm.errors import ConfigError, InternalError, InterruptedRunError
from mentalglm.scoring.predictions import Outcome, prediction_table
from mentalglm.scoring.rounds.retry import RetrySummary, check_statuses, open_round
from mentalglm.scoring.rounds.round import effective_totals
from mentalglm.scoring.run.commit import ShardCommit, Totals
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.scoring.run.parts import PartWriter
from tests.unit.scoring.test_parts import CONFIG, KEPT, LANGUAGES, SCHEMA, Killed

NUM_ROWS = 6
TASKS = CONFIG.tasks
FAILED = [Outcome("parse_failed", "no_label"), Outcome("truncated", "cut"), Outcome("engine_error", "timeout")]
UNUSABLE = Outcome("empty_text", "null_text")
DEFAULT = check_statuses([])
MANIFEST: dict[str, Any] = {
    "run_id": "r",
    "explain": "all",
    "finished_at": "before",
    "model": {"name": "m", "digest": "d"},
    "input": {"quarantined": []},
    "output": {"statuses": {}, "num_unreadable_rows": 0},
}

Key = tuple[str, int, int]
"""Question (a task, or one of an adapter), shard, row."""


class Corpus:
    """Posts, and what an engine makes of them at each attempt."""

    def __init__(self, num_shards: int, num_ids: int, seed: int = 0, adapters: Sequence[str] = ()) -> None:
        self.tasks = [f"{task}/adapter={adapter}" for adapter in adapters for task in TASKS] or TASKS
        self.num_shards = num_shards
        self.num_ids = num_ids
        self._seed = seed

    def predictions(self) -> list[Key]:
        return [
            (task, shard, row) for task in self.tasks for shard in range(self.num_shards) for row in range(NUM_ROWS)
        ]

    def post_id(self, shard: int, row: int) -> str:
        return str((shard * NUM_ROWS + row) % self.num_ids)

    def outcome(self, attempt: int, key: Key) -> Outcome:
        if key[1:] == (0, 0):
            return UNUSABLE
        scores = (("low_risk", attempt / 16), ("high_risk", 1 - attempt / 16))
        explanation = f"{attempt}/{key}"
        ok = Outcome("ok", labels=("low_risk",), explanation=explanation, label_scores=scores, num_output_tokens=1)
        chance = random.Random(f"{self._seed}/{attempt}/{key}")
        outcome = chance.choice([ok, ok, *FAILED])
        # Failed rows of one post and text, of one status, are not told apart: all are copies, or none.
        of_post = chance if outcome is ok else random.Random(f"{self._seed}/{self.post_id(*key[1:])}")
        return replace(outcome, duplicate_of=of_post.choice([None, "1"]))

    def is_readable(self, attempt: int, shard: int) -> bool:
        return attempt == 0 or random.Random(f"{self._seed}/{attempt}/{shard}").random() < 0.8

    def posts(self, shard: int) -> Posts:
        rows = range(NUM_ROWS)
        return Posts(
            ids=[self.post_id(shard, row) for row in rows],
            texts=["x"] * NUM_ROWS,
            statuses=[None] * NUM_ROWS,
            reasons=[None] * NUM_ROWS,
            flags=[["duplicate_id"]] * NUM_ROWS,
            text_hashes=["h"] * NUM_ROWS,
            kept=pa.table({"lang": [LANGUAGES[row % 3] for row in rows], "year": [2020 + shard % 2] * NUM_ROWS}, KEPT),
        )

    def commit(self, ledger: Ledger, attempt: int, shard: int, rows: Mapping[str, Sequence[int]]) -> ShardCommit:
        """What the worker does."""
        tables, outcomes = {}, {}
        for task, picked in rows.items():
            table = prediction_table(
                SCHEMA, self.posts(shard), [self.outcome(attempt, (task, shard, row)) for row in range(NUM_ROWS)]
            )
            tables[task] = table.take(list(picked))
            outcomes[task] = [self.outcome(attempt, (task, shard, row)) for row in picked]
        return ledger.commit(shard, tables, outcomes, {"run_id": "r"}, engine={"engine": "x"}, seconds=0.0)


class Run:
    """A finished run in a folder, and a model of what its table must be."""

    def __init__(self, folder: Path | str, corpus: Corpus, *, target_bytes: int = 10**9, partitioned: bool = False):
        self.folder = Path(folder)
        self.corpus = corpus
        self.ledger = Ledger(str(folder))
        self.partition_by = KEPT.names if partitioned else []
        every = {task: range(NUM_ROWS) for task in corpus.tasks}
        parts = PartWriter(self.ledger, target_bytes=target_bytes, partition_by=self.partition_by)
        for shard in range(corpus.num_shards):
            parts.add(corpus.commit(self.ledger, 0, shard, every))
        parts.flush()
        self.ledger.publish(MANIFEST)
        self.results = {key: corpus.outcome(0, key) for key in corpus.predictions()}
        self.num_rounds = 0

    def retry(self, statuses: frozenset[str] = DEFAULT, retry_max_tokens: int | None = None) -> RetrySummary | None:
        """One attempt at the next round. None: there was nothing to do."""
        if (current := open_round(self.ledger, statuses, retry_max_tokens)) is None:
            return None
        attempt = current.number + 1
        for shard, rows in current.pending().items():
            if self.corpus.is_readable(attempt, shard):
                self.corpus.commit(current.ledger, attempt, shard, rows)
            else:
                current.ledger.commit_quarantined(shard, NUM_ROWS, "corrupt_page")
        return current.finish(self.partition_by)

    def num_finished(self) -> int:
        return len(list((self.folder / "_run" / "retries").glob("*.done.json")))

    def expect(self, statuses: frozenset[str]) -> None:
        """One more round is over."""
        self.num_rounds += 1
        for key, outcome in self.results.items():
            if outcome.status in statuses and self.corpus.is_readable(self.num_rounds, key[1]):
                self.results[key] = self.corpus.outcome(self.num_rounds, key)

    def table(self) -> list[dict[str, Any]]:
        # File by file: between listing and reading nothing may be missing.
        rows = []
        for path in sorted((self.folder / "data").rglob("*.parquet")):
            folders = path.relative_to(self.folder / "data").parts
            task = "/".join(each for each in folders if each.startswith(("task=", "adapter="))).removeprefix("task=")
            place = path.parent.as_posix()
            rows += [{**row, "task": task, "place": place} for row in pq.ParquetFile(path).read().to_pylist()]
        return rows

    def check_each_row_is_there_once(self) -> None:
        ids = Counter((row["task"], row["post_id"]) for row in self.table())
        assert ids == Counter((task, self.corpus.post_id(shard, row)) for task, shard, row in self.results)

    def check(self) -> None:
        """Table, errors and records say what the model says."""

        def of(key: Key) -> tuple[str, str]:
            return key[0], self.corpus.post_id(*key[1:])

        table = self.table()
        assert Counter((row["task"], row["post_id"], row["status"], row["explanation"]) for row in table) == Counter(
            (*of(key), each.status, each.explanation) for key, each in self.results.items()
        )
        for row in table:
            attempt = int(row["explanation"].partition("/")[0]) if row["explanation"] else None
            assert row["label_scores"] == (
                None if attempt is None else [("low_risk", attempt / 16), ("high_risk", 1 - attempt / 16)]
            )
        assert all((row["labels"] is None) == (row["status"] != "ok") for row in table)
        assert all(row["flags"] == ["duplicate_id"] for row in table)
        errors = pads.dataset(self.folder / "errors").to_table().to_pylist()
        for row in errors:
            row["task"] += f"/adapter={row['adapter']}" if "adapter" in row else ""
        assert Counter((row["task"], row["post_id"], row["status"], row["reason"]) for row in errors) == Counter(
            (*of(key), each.status, each.reason) for key, each in self.results.items() if each.status != "ok"
        )
        statuses: dict[str, Counter[str]] = {task: Counter() for task in self.corpus.tasks}
        for (task, _, _), each in self.results.items():
            statuses[task][each.status] += 1
        totals = effective_totals(self.ledger)
        assert totals.statuses == statuses
        assert {task: counts.total() for task, counts in totals.labels.items()} == {
            task: counts["ok"] for task, counts in statuses.items()
        }
        num_copied = sum(row["duplicate_of"] is not None for row in table)
        assert totals.num_copied == num_copied
        manifest = json.loads((self.folder / "manifest.json").read_bytes())
        if self.num_rounds:
            assert manifest["output"]["num_copied"] == num_copied
            assert manifest["output"]["statuses"] == statuses
            assert [entry["round"] for entry in manifest["retries"]] == list(range(self.num_rounds))
            for file in manifest["output"]["files"]:
                path = self.folder / file["path"]
                assert (file["num_rows"], file["num_bytes"]) == (
                    pq.read_metadata(path).num_rows,
                    path.stat().st_size,
                )
        assert (self.folder / "_SUCCESS").exists()
        assert {path.suffix for path in (self.folder / "data").rglob("*") if path.is_file()} == {".parquet"}


@contextmanager
def dying_at(step: int, after: bool) -> Iterator[None]:
    """Dies at the `step`-th write to the store, before or after it is done."""
    names = ("put", "put_if_absent", "put_file_if_unchanged", "delete")
    left = [step]

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and not after:
                raise Killed
            result = function(*arguments)
            if left[0] == 0:
                raise Killed
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(storage, name, dying(getattr(storage, name)))
        yield


@given(
    num_shards=st.integers(1, 5),
    num_ids=st.integers(1, 30),
    seed=st.integers(0, 10**6),
    target_bytes=st.sampled_from([1, 12_000, 10**9]),
    partitioned=st.booleans(),
    adapters=st.sampled_from([(), ("S1", "S2")]),
    rounds=st.lists(
        st.tuples(
            st.sets(st.sampled_from(["parse_failed", "truncated", "engine_error"])),
            st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=4),
        ),
        min_size=1,
        max_size=3,
    ),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_rows_are_there_once_with_their_last_result_after_deaths_at_any_write(
    num_shards: int,
    num_ids: int,
    seed: int,
    target_bytes: int,
    partitioned: bool,
    adapters: Sequence[str],
    rounds: Iterable[tuple[set[str], list[tuple[int, bool]]]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        corpus = Corpus(num_shards, num_ids, seed, adapters)
        run = Run(name, corpus, target_bytes=target_bytes, partitioned=partitioned)
        for chosen, deaths in rounds:
            statuses = check_statuses(sorted(chosen))
            is_due = any(each.status in statuses for each in run.results.values())
            for step, after in deaths:
                with dying_at(step, after), suppress(Killed):
                    if run.num_finished() == run.num_rounds:
                        run.retry(statuses)
                run.check_each_row_is_there_once()
            if run.num_finished() == run.num_rounds:
                assert (run.retry(statuses) is not None) == is_due
            if is_due:
                run.expect(statuses)
            run.check()
        assert open_round(run.ledger, frozenset({"refused"})) is None  # and clears away what a death has left
        assert not list((run.folder / "_run" / "retries").rglob("*.parquet"))


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for name in ("data", "errors") for path in (folder / name).rglob("*.parquet")}


def test_only_files_with_retried_rows_are_written(tmp_path: Path) -> None:
    corpus = Corpus(6, 100, seed=3)
    run = Run(tmp_path, corpus, target_bytes=1)
    before = files(tmp_path)
    chosen = frozenset({"truncated"})
    having = {(task, shard) for (task, shard, _), each in run.results.items() if each.status in chosen}
    assert 0 < len(having) < 12
    assert run.retry(chosen) is not None
    changed = {path for path, data in files(tmp_path).items() if data != before[path]}
    wanted = {(task, shard) for task, shard in having if corpus.is_readable(1, shard)}
    assert {path for path in changed if "data" in path.parts} == {
        tmp_path / "data" / f"task={task}" / f"part-{shard:05d}.parquet" for task, shard in wanted
    }
    assert {path.name for path in changed if "errors" in path.parts} == {
        f"part-{shard:05d}.parquet" for _, shard in wanted
    }


def test_applying_twice_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # All rows stand for each other, and some fail again: told from the footer, not from the rows.
    run = Run(tmp_path, Corpus(3, 1, seed=5), target_bytes=1)
    put_if_absent = storage.put_if_absent

    def die_at_the_last_word(uri: str, *arguments: Any) -> bool:
        if uri.endswith("000.done.json"):
            raise Killed
        return put_if_absent(uri, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put_if_absent", die_at_the_last_word)
        with pytest.raises(Killed):
            run.retry()
    after = files(tmp_path)
    assert run.retry() is not None
    assert files(tmp_path) == after
    run.expect(DEFAULT)
    run.check()


def test_the_order_of_rows_and_the_kept_columns_stay(tmp_path: Path) -> None:
    run = Run(tmp_path, Corpus(4, 1000), target_bytes=10**9)
    before = run.table()
    run.retry()
    unchanged = ("task", "post_id", "text_hash", "lang", "year")
    assert [[row[name] for name in unchanged] for row in run.table()] == [
        [row[name] for name in unchanged] for row in before
    ]
    assert [new for old, new in zip(before, run.table(), strict=True) if old["status"] == "ok"] == [
        old for old in before if old["status"] == "ok"
    ]


def test_an_errors_file_stays_when_its_last_row_goes(tmp_path: Path) -> None:
    corpus = Corpus(1, 100)
    corpus.outcome = lambda attempt, key: FAILED[0] if (attempt, key[2]) == (0, 3) else Outcome("ok", labels=())  # type: ignore[method-assign]
    corpus.is_readable = lambda attempt, shard: True  # type: ignore[method-assign]
    run = Run(tmp_path, corpus)
    summary = run.retry()
    assert summary is not None
    assert (summary.num_retried, summary.retried) == (2, {"ok": 2})
    assert "2 predictions retried, 2 ok now, 0 still failed" in summary.describe()
    assert pq.read_table(tmp_path / "errors" / "part-00000.parquet").num_rows == 0
    assert run.retry() is None


def test_files_and_manifest_say_what_was_retried(tmp_path: Path) -> None:
    run = Run(tmp_path, Corpus(2, 100))
    run.retry()
    run.retry(frozenset({"engine_error"}))
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    assert manifest["finished_at"] == "before"
    first, second = manifest["retries"]
    assert first["statuses"] == sorted(DEFAULT)
    assert second["statuses"] == ["engine_error"]
    assert first["num_retried"] == sum(first["now"].values()) > 0
    assert first["versions"]["mentalglm"]
    assert first["engines"] == [{"engine": "x"}]
    rounds = [
        [each["round"] for each in json.loads(pq.read_metadata(path).metadata[b"mentalglm"]).get("retries", [])]
        for path in (tmp_path / "data").rglob("*.parquet")
    ]
    assert [0, 1] in rounds
    table = (tmp_path / "README.md").read_text()
    for task, statuses in manifest["output"]["statuses"].items():
        assert all(f"| {task} | {status} | {n} |" in table for status, n in statuses.items())


def test_an_interrupted_retry_is_finished_before_another_begins(tmp_path: Path) -> None:
    run = Run(tmp_path, Corpus(2, 100))
    assert open_round(run.ledger, frozenset({"parse_failed", "truncated"})) is not None
    with pytest.raises(ConfigError, match=r"finish it first: .* --status parse_failed --status truncated"):
        run.retry()
    assert effective_totals(run.ledger).statuses == Totals.of(run.ledger.read_commits()).statuses


def test_a_fenced_job_replaces_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, Corpus(2, 100))
    before = files(tmp_path)
    current = open_round(run.ledger, DEFAULT)
    assert current is not None
    for shard, rows in current.pending().items():
        run.corpus.commit(current.ledger, 1, shard, rows)

    def check() -> None:
        raise InterruptedRunError("taken over")

    run.ledger.check_fence = check
    with pytest.raises(InterruptedRunError, match="taken over"):
        current.finish([])
    assert files(tmp_path) == before
    assert (tmp_path / "manifest.json").read_bytes() == json.dumps(MANIFEST, indent=2).encode() + b"\n"


def test_a_job_that_sleeps_before_a_write_brings_no_older_rows_back(tmp_path: Path) -> None:
    run = Run(tmp_path, Corpus(2, 100))
    replace = storage.put_file_if_unchanged

    def sleep_and_replace(*arguments: Any) -> bool:
        """In its sleep another job finishes the round, and one more."""
        patch.undo()
        for statuses in (DEFAULT, DEFAULT):
            assert run.retry(statuses) is not None
            run.expect(statuses)
        return replace(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "put_file_if_unchanged", sleep_and_replace)
        with pytest.raises(InterruptedRunError, match="another job works on this run; wait for it, or stop it"):
            run.retry()
    run.check()


@pytest.mark.parametrize("step", range(12))
def test_a_job_that_was_taken_for_dead_and_finishes_the_same_round_spoils_nothing(tmp_path: Path, step: int) -> None:
    """Right before a write of the job that has taken the round over."""
    run = Run(tmp_path, Corpus(3, 100), target_bytes=1)
    names = ("put_file_if_unchanged", "put", "put_if_absent", "delete")
    num_left = step

    with pytest.MonkeyPatch.context() as patch:

        def wrap(name: str) -> None:
            write = getattr(storage, name)

            def call(uri: str, *arguments: Any) -> Any:
                nonlocal num_left
                if not (name == "put_if_absent" and "/commits/" in uri):
                    num_left -= 1
                if num_left == -1:
                    patch.undo()
                    woken = open_round(Ledger(str(tmp_path)), DEFAULT)
                    assert woken is not None
                    if woken.number == 0:
                        woken.finish([])
                return write(uri, *arguments)

            patch.setattr(storage, name, call)

        current = open_round(run.ledger, DEFAULT)
        assert current is not None
        for shard, rows in current.pending().items():
            run.corpus.commit(current.ledger, 1, shard, rows)
        for name in names:
            wrap(name)
        try:
            summary = current.finish([])
        except InterruptedRunError:
            summary = None
        assert num_left < 0
    run.expect(DEFAULT)
    run.check()
    assert summary is None or summary.totals.model_dump() == effective_totals(run.ledger).model_dump()


def test_a_retry_does_not_believe_listings(tmp_path: Path) -> None:
    run = Run(tmp_path, Corpus(3, 100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "list_names", lambda _: [])
        for _ in range(3):
            if run.retry() is not None:
                run.expect(DEFAULT)
    run.check()


def test_a_retry_with_other_tokens_than_the_interrupted_one_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, Corpus(2, 100))
    assert open_round(run.ledger, DEFAULT, 512) is not None
    with pytest.raises(ConfigError, match=r"finish it first: .* --set generation.retry_max_tokens=512"):
        open_round(run.ledger, DEFAULT)
    assert open_round(run.ledger, DEFAULT, 512) is not None


def test_a_file_with_other_rows_is_not_written_over(tmp_path: Path) -> None:
    run = Run(tmp_path / "a", Corpus(1, 100))
    path = tmp_path / "a" / "data" / f"task={TASKS[0]}" / "part-00000.parquet"
    other = pq.ParquetFile(path).read().slice(0, 2)
    pq.write_table(other, path)
    content = path.read_bytes()
    with pytest.raises(InternalError, match=r"rows"):
        run.retry()
    assert path.read_bytes() == content


def test_unknown_statuses_are_refused() -> None:
    assert check_statuses(["truncated"]) == {"truncated"}
    assert "empty_text" not in DEFAULT
    for status in ("ok", "failed"):
        with pytest.raises(ConfigError, match=rf"--status {status}: .*use one of parse_failed, truncated"):
            check_statuses([status])
