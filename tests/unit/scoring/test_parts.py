"""Parts: whatever happens and whenever, `data/` never shows a row twice, and in the end shows each once."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mentalglm import storage
from mentalglm.config import ScoreConfig
from mentalglm.corpus import Posts
from mentalglm.errors import ConfigError, InternalError, InterruptedRunError
from mentalglm.scoring.predictions import Outcome, hash_ids, prediction_schema, prediction_table
from mentalglm.scoring.run.commit import ShardCommit, Totals
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.scoring.run.parts import PartWriter, read_totals, split, to_ranges

KEPT = pa.schema([("lang", pa.string()), ("year", pa.int32())])
CONFIG = ScoreConfig.model_validate(
    {
        "input": {"uri": "a", "keep_columns": KEPT.names},
        "output": {"uri": "b", "partition_by": KEPT.names},
        "tasks": ["suicide_risk", "cognitive_distortion"],
        "label_scores": "forced",
    }
)
SCHEMA = prediction_schema(CONFIG, KEPT)
OK, FAILED = Outcome("ok", labels=("low_risk",)), Outcome("parse_failed", "no_label")
LANGUAGES = ["zh", None, "", "a/b=c", "中文"]


def commit(ledger: Ledger, shard: int, num_rows: int = 5) -> ShardCommit:
    """A shard whose second row failed on every task."""
    posts = Posts(
        ids=[f"{shard}-{row}" for row in range(num_rows)],
        texts=["x"] * num_rows,
        statuses=[None] * num_rows,
        reasons=[None] * num_rows,
        flags=[[] for _ in range(num_rows)],
        text_hashes=["h"] * num_rows,
        kept=pa.table(
            {
                "lang": [LANGUAGES[row % 5] for row in range(num_rows)],
                "year": [2020 + shard % 2] * num_rows,
            },
            KEPT,
        ),
    )
    outcomes = {task: [FAILED if row == 1 else OK for row in range(num_rows)] for task in CONFIG.tasks}
    tables = {task: prediction_table(SCHEMA, posts, each) for task, each in outcomes.items()}
    return ledger.commit(shard, tables, outcomes, {"run_id": "r"}, engine={}, seconds=0.0)


def rows(folder: Path) -> Counter[tuple[str, str]]:
    """(task, post id) of every row that a reader of the folder sees now."""
    found: Counter[tuple[str, str]] = Counter()
    for path in (folder / "data").rglob("*.parquet") if (folder / "data").exists() else []:
        task = path.relative_to(folder / "data").parts[0]
        found.update((task, post_id) for post_id in pq.read_table(path, columns=["post_id"])["post_id"].to_pylist())
    return found


def expected(num_shards: int) -> Counter[tuple[str, str]]:
    return Counter(
        (f"task={task}", f"{shard}-{row}") for task in CONFIG.tasks for shard in range(num_shards) for row in range(5)
    )


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def dying_at(step: int, after: bool) -> Iterator[None]:
    """Dies at the `step`-th write to the store, before or after it is done."""
    names = ("put_if_absent", "put_file_if_absent", "delete")
    originals: dict[str, Callable[..., Any]] = {name: getattr(storage, name) for name in names}
    left = [step]

    def wrap(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and not after:
                raise Killed
            result = originals[name](*arguments)
            if left[0] == 0:
                raise Killed
            return result

        return call

    for name in names:
        setattr(storage, name, wrap(name))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(storage, name, function)


@given(
    num_shards=st.integers(1, 6),
    target_bytes=st.sampled_from([1, 12_000, 10**9]),
    partitioned=st.booleans(),
    deaths=st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=4),
    order=st.randoms(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_rows_are_there_once_after_deaths_at_any_write(
    num_shards: int, target_bytes: int, partitioned: bool, deaths: list[tuple[int, bool]], order: Any
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ledger = Ledger(name)
        shards = list(range(num_shards))
        order.shuffle(shards)
        options: dict[str, Any] = {"target_bytes": target_bytes}
        options |= {"partition_by": CONFIG.output.partition_by} if partitioned else {}

        def attempt() -> PartWriter:
            parts = PartWriter(ledger, **options)
            missing = set(parts.missing(num_shards))
            assert missing == set(shards) - ledger.committed_shards()
            for shard in shards:
                if shard in missing:
                    parts.add(commit(ledger, shard))
            parts.flush()
            return parts

        for step, after in deaths:
            with dying_at(step, after), suppress(Killed):
                attempt()
            assert not rows(folder) - expected(num_shards), "a row is there twice"
        parts = attempt()
        assert rows(folder) == expected(num_shards)
        parts.check_files()
        everything = Totals.of(ledger.read_commits())
        assert (
            parts.id_hashes()["task=suicide_risk"]
            == everything.id_hash
            == hash_ids([f"{shard}-{row}" for shard in range(num_shards) for row in range(5)])
        )
        for totals in (parts.totals, read_totals(ledger), PartWriter(ledger, **options).totals):
            assert totals.model_dump() == everything.model_dump()
        errors = pads.dataset(folder / "errors").to_table()
        assert errors.num_rows == 2 * num_shards
        assert {path.suffix for path in (folder / "data").rglob("*") if path.is_file()} == {".parquet"}


def test_partitions_are_read_back_by_every_reader(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    commit(ledger, 0)
    commit(ledger, 1)
    PartWriter(ledger, target_bytes=10**9, partition_by=KEPT.names).flush()
    table = pads.dataset(tmp_path / "data", partitioning="hive").to_table()
    assert Counter(table["lang"].to_pylist()) == Counter(dict.fromkeys(LANGUAGES, 4))
    assert set(table["year"].to_pylist()) == {2020, 2021}
    source = f"read_parquet('{tmp_path}/data/**/*.parquet', hive_partitioning = true)"
    assert duckdb.sql(f"SELECT count(*) FROM {source} WHERE lang = 'a/b=c'").fetchall() == [(4,)]


def test_files_have_the_size_and_the_row_groups_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mentalglm.scoring.run.parts.ROW_GROUP_SIZE", 12)
    ledger = Ledger(str(tmp_path))
    parts = PartWriter(ledger, target_bytes=10**9)
    for shard in range(8):
        parts.add(commit(ledger, shard))
    parts.flush()
    [path] = (tmp_path / "data" / "task=suicide_risk").iterdir()
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [15, 15, 10]
    assert pq.read_table(path)["post_id"].to_pylist() == [f"{shard}-{row}" for shard in range(8) for row in range(5)]
    assert not list((tmp_path / "_run" / "shards").rglob("*.parquet"))


def test_a_shard_file_that_was_changed_is_not_published(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    commit(ledger, 0)
    parts = PartWriter(ledger, target_bytes=10**9)
    path = Path(ledger.staged_path("task=suicide_risk", 0))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InternalError, match="has changed"):
        parts.flush()


def test_a_part_that_holds_other_rows_is_not_taken_for_ours(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "a"))
    other = Ledger(str(tmp_path / "b"))
    commit(other, 7)
    PartWriter(other, target_bytes=1).flush()
    commit(ledger, 0)
    shutil.copytree(tmp_path / "b" / "data", tmp_path / "a" / "data")
    with pytest.raises(InternalError, match="other rows"):
        PartWriter(ledger, target_bytes=1).flush()


def test_a_fenced_writer_begins_no_part(tmp_path: Path) -> None:
    def check() -> None:
        raise InterruptedRunError("taken over")

    commit(Ledger(str(tmp_path)), 0)
    with pytest.raises(InterruptedRunError, match="taken over"):
        PartWriter(Ledger(str(tmp_path), check), target_bytes=1).flush()
    assert not (tmp_path / "data").exists()


def test_a_column_that_cannot_name_a_folder_is_refused() -> None:
    kept = pa.schema([("lang", pa.float64()), ("year", pa.int32())])
    with pytest.raises(ConfigError, match=r"partition_by names 'lang', whose type is double"):
        prediction_schema(CONFIG, kept)


def test_a_shard_that_is_told_twice_is_written_once(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    parts = PartWriter(ledger, target_bytes=1)
    record = commit(ledger, 0)
    parts.add(record)
    parts.add(commit(ledger, 0))  # by a lane that had been given up; its files are staged again
    parts.flush()
    assert rows(tmp_path) == expected(1)


def test_a_writer_that_was_overtaken_says_so_and_not_that_the_run_is_damaged(tmp_path: Path) -> None:
    def check() -> None:
        raise InterruptedRunError("taken over")

    ledger = Ledger(str(tmp_path))
    commit(ledger, 0)
    late = PartWriter(ledger, target_bytes=10**9)
    PartWriter(Ledger(str(tmp_path)), target_bytes=10**9).flush()  # took the run over meanwhile
    with pytest.raises(InterruptedRunError, match="another job"):
        late.flush()
    # It was in the middle of that part, and the files of the shard went under its hands.
    parts = tmp_path / "_run" / "parts"
    done = (parts / "00000.done.json").read_bytes()
    (parts / "00000.done.json").unlink()
    ledger.check_fence = check
    with pytest.raises(InterruptedRunError, match="taken over"):
        PartWriter(ledger, target_bytes=10**9)
    (parts / "00000.done.json").write_bytes(done)
    [file] = [file for file in PartWriter(ledger, target_bytes=10**9).files if file.kind != "errors"][:1]
    assert file.num_rows == 5


def test_a_commit_that_a_listing_does_not_show_yet_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(str(tmp_path))
    commit(ledger, 0)
    with dying_at(1, after=True), suppress(Killed):
        PartWriter(ledger, target_bytes=1).flush()
    monkeypatch.setattr(storage, "list_names", lambda _: [])
    parts = PartWriter(ledger, target_bytes=1)
    assert rows(tmp_path) == expected(1)
    assert parts.files
    assert parts.totals.num_predictions == 10


def test_a_value_too_long_for_a_folder_does_not_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "LANGUAGES", ["很" * 100, "很" * 101, "a", "b", None])
    ledger = Ledger(str(tmp_path))
    commit(ledger, 0)
    PartWriter(ledger, target_bytes=1, partition_by=["lang"]).flush()
    assert rows(tmp_path) == expected(1)
    assert len(list((tmp_path / "data" / "task=suicide_risk").iterdir())) == 5


def test_more_partitions_than_files_can_be_open_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mentalglm.scoring.run.parts._MAX_OPEN_FILES", 3)
    ledger = Ledger(str(tmp_path))
    for shard in range(4):
        commit(ledger, shard)
    parts = PartWriter(ledger, target_bytes=1, partition_by=KEPT.names)
    parts.flush()
    assert rows(tmp_path) == expected(4)
    assert len(list((tmp_path / "data" / "task=suicide_risk").rglob("*.parquet"))) == 10
    parts.check_files()


def test_a_text_that_looks_like_the_folder_of_nulls_has_a_folder_of_its_own() -> None:
    table = pa.table({"lang": [None, "__HIVE_DEFAULT_PARTITION__", "zh"], "n": [0, 1, 2]})
    places = {place: rows["n"].to_pylist() for place, rows in split(table, ["lang"])}
    assert sorted(places.values()) == [[0], [1], [2]]


def test_a_resume_reads_the_records_of_parts_and_not_those_of_their_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(str(tmp_path))
    for shard in range(6):
        commit(ledger, shard)
    ledger.commit_quarantined(6, 5, "corrupt_page")
    PartWriter(ledger, target_bytes=10**9).flush()
    commit(ledger, 8)
    before = read_totals(ledger)
    read, read_bytes = list[str](), storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri: read.append(uri) or read_bytes(uri))
    monkeypatch.setattr(storage, "delete", lambda uri: None)
    parts = PartWriter(ledger, target_bytes=10**9)
    assert parts.totals.model_dump() == before.model_dump() == read_totals(ledger).model_dump()
    assert (parts.totals.num_rows, parts.totals.num_quarantined) == (35, 5)
    assert parts.missing(9) == [7]
    assert [uri.rpartition("/")[2] for uri in read if "/commits/" in uri] == ["00000008.json"] * 2


def test_files_of_the_output_that_went_missing_or_that_nobody_wrote_are_noticed(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    commit(ledger, 0)
    parts = PartWriter(ledger, target_bytes=1, partition_by=KEPT.names)
    parts.flush()
    parts.check_files()
    stranger = tmp_path / "data" / "task=suicide_risk" / "copy.parquet"
    stranger.write_bytes(b"")
    with pytest.raises(ConfigError, match="holds Parquet files that this run has not written"):
        parts.check_files()
    stranger.unlink()
    for path in list((tmp_path / "data").rglob("*.parquet"))[:1]:
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(InternalError, match="gone or has changed"):
            parts.check_files()
        path.unlink()
        with pytest.raises(InternalError, match="gone or has changed") as error:
            parts.check_files()
        assert "lang=" not in str(error.value)  # a value of a kept column may be a name


@given(st.sets(st.integers(0, 50)))
def test_ranges_hold_the_numbers(numbers: set[int]) -> None:
    ranges = to_ranges(sorted(numbers))
    assert [n for start, stop in ranges for n in range(start, stop)] == sorted(numbers)
    assert all(before[1] < after[0] for before, after in pairwise(ranges))
