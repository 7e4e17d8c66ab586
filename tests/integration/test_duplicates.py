"""Posts with equal texts are scored once: the table is the one without that, but for who paid for the answer."""

import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from mentalglm import storage
from mentalglm.config import S3Config, ScoreConfig
from mentalglm.corpus import ShardReader
from mentalglm.errors import InputError, InterruptedRunError, StorageError
from mentalglm.scoring import score
from mentalglm.scoring.board import RunBoard
from mentalglm.scoring.duplicates import _hashes, _pairs, find_duplicates
from mentalglm.scoring.job import Job
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.scoring.run.parts import PartWriter
from tests.integration.test_score_pipeline import interrupt, read

pytestmark = pytest.mark.usefixtures("ray_session")

TASKS = ["suicide_risk", "cognitive_distortion"]
NUM_ROWS, SHARD_ROWS = 200, 10
SAME = ["post_id", "task", "status", "labels", "explanation", "text_hash", "flags", "finish_reason", "label_scores"]


@pytest.fixture
def texts(tmp_path: Path) -> list[str | None]:
    """A crawl in which some texts are posted again and again, near and far, with other white space or none."""
    chance = random.Random(7)
    texts: list[str | None] = [None, " "]
    while len(texts) < NUM_ROWS:
        texts.append(f"{' ' * chance.randrange(2)}转发第{int(chance.paretovariate(0.7))}条")
    ids = [str(n) for n in range(NUM_ROWS)]
    (tmp_path / "posts").mkdir()
    for name, rows in (("a", slice(0, 90)), ("b", slice(90, None))):
        pq.write_table(pa.table({"post_id": ids[rows], "text": texts[rows]}), tmp_path / "posts" / f"{name}.parquet")
    return texts


def config(folder: Path, output: str, dedup: str, **changes: Any) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {
            "input": {"uri": str(folder / "posts")},
            "output": {"uri": output if "://" in output else str(folder / output)},
            "tasks": TASKS,
            "engine": {"kind": "echo"},
            "shard_rows": SHARD_ROWS,
            "dedup": dedup,
            "label_scores": "forced",
        }
        | changes
    )


def first_rows(texts: Sequence[str | None], shard_rows: int) -> dict[str, str | None]:
    """Post id -> id of the first post within each `shard_rows` rows that has the same text, where that is another."""
    bounds = [*range(0, 90, shard_rows), *range(90, NUM_ROWS, shard_rows)]
    first: dict[tuple[int, str], int] = {}
    found: dict[str, str | None] = {}
    for row, text in enumerate(texts):
        shard = max(each for each in bounds if each <= row) if shard_rows < NUM_ROWS else 0
        key = (shard, (text or "").strip())
        original = first.setdefault(key, row)
        found[str(row)] = str(original) if original != row and key[1] else None
    return found


def check(table: pa.Table, plain: pa.Table, originals: dict[str, str | None]) -> None:
    key = [("post_id", "ascending"), ("task", "ascending")]
    assert table.select(SAME).sort_by(key).equals(plain.select(SAME).sort_by(key))
    for row in table.to_pylist():
        assert row["duplicate_of"] == originals[row["post_id"]]
        is_asked = row["status"] == "ok" and row["duplicate_of"] is None
        assert (row["num_output_tokens"] is not None) == is_asked


def test_a_text_is_scored_once_and_every_post_has_its_row(tmp_path: Path, texts: list[str | None]) -> None:
    plain = score(config(tmp_path, "off", "off"))
    assert plain.totals.num_copied == 0
    for dedup, shard_rows in (("shard", SHARD_ROWS), ("corpus", NUM_ROWS)):
        originals = first_rows(texts, shard_rows)
        summary = score(config(tmp_path, dedup, dedup, engine={"kind": "echo", "num_engines": 2}))
        check(read(tmp_path / dedup), read(tmp_path / "off"), originals)
        num_copies = len(TASKS) * sum(1 for each in originals.values() if each)
        assert summary.totals.num_copied == num_copies > 0
        assert summary.totals.statuses == plain.totals.statuses
    assert num_copies > len(TASKS) * NUM_ROWS / 2


def test_a_run_that_goes_on_copies_what_was_scored_before(
    tmp_path: Path, texts: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    score(config(tmp_path, "off", "off"))
    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "flush", interrupt)
        with pytest.raises(InterruptedRunError):
            score(config(tmp_path, "out", "corpus"))
    run = tmp_path / "out" / "_run"
    # Some shards had died before their record, one before it kept what others copy, one before anything.
    for shard in (1, 3, 12, 13, 19):
        (run / "commits" / f"{shard:08d}.json").unlink()
    for path in (run / "shards").rglob("00000003.parquet"):
        path.unlink()
    for shard in (1, 3):
        (run / "originals" / f"{shard:08d}.json").unlink(missing_ok=True)
    summary = score(config(tmp_path, "out", "corpus"))
    check(read(tmp_path / "out"), read(tmp_path / "off"), first_rows(texts, NUM_ROWS))
    assert summary.totals.num_predictions == NUM_ROWS * len(TASKS)


def test_copies_of_posts_that_cannot_be_read_are_scored_themselves(tmp_path: Path, texts: list[str | None]) -> None:
    settings = config(tmp_path, "out", "corpus", max_error_rate=1.0)
    job, ledger = Job.resolve(settings), Ledger(settings.output.uri)
    job.open_run(ledger)
    ledger.commit_quarantined(0, SHARD_ROWS, "corrupt_page")
    summary = score(settings)
    originals = first_rows(texts, NUM_ROWS)
    in_first = {str(row) for row in range(SHARD_ROWS)}
    for row in read(tmp_path / "out").to_pylist():
        assert row["post_id"] not in in_first
        of = originals[row["post_id"]]
        assert row["duplicate_of"] == (None if of in in_first else of)
        assert row["status"] == "ok"
    assert summary.totals.num_predictions == (NUM_ROWS - SHARD_ROWS) * len(TASKS)


@pytest.fixture
def named_s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The settings `s3` of a config, without which this process finds no server: the environment names none."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # unset, it would be that of AWS: slow to fail
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    yield {"endpoint": s3_server, "max_attempts": 2}
    storage.configure(S3Config())


def test_the_same_on_s3(tmp_path: Path, texts: list[str | None], s3: str, named_s3: dict[str, Any]) -> None:
    score(config(tmp_path, "off", "off"))
    score(config(tmp_path, f"{s3}/out", "corpus", s3=named_s3))
    check(read(f"{s3}/out"), read(tmp_path / "off"), first_rows(texts, NUM_ROWS))


def test_whichever_process_looks_for_equal_texts_reaches_the_s3_of_the_config(
    tmp_path: Path, texts: list[str | None], s3: str, named_s3: dict[str, Any]
) -> None:
    settings = config(tmp_path, f"{s3}/out", "corpus", s3=named_s3)
    job = Job.resolve(settings)
    plan = job.open_run(Ledger(settings.output.uri))
    board = ray.remote(num_cpus=0)(RunBoard).remote([])
    storage.configure(S3Config(max_attempts=1))  # as in a process of Ray that has done nothing yet
    hashes = pa.concat_tables(_hashes({"start": [0], "stop": [plan.num_shards]}, settings, board))
    storage.configure(S3Config(max_attempts=1))
    pairs = _pairs(hashes, settings, board)
    assert ray.get(board.news.remote()).error is None
    originals = first_rows(texts, NUM_ROWS)
    copies = {str(row): str(of) for row, of in zip(*pairs.to_pydict().values(), strict=True) if row != of}
    assert copies == {row: of for row, of in originals.items() if of}


def test_a_corpus_without_equal_texts_has_no_copies(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "posts", ignore_errors=True)
    (tmp_path / "posts").mkdir()
    table = pa.table({"post_id": ["a", "b", "c"], "text": ["x", "y", None]})
    pq.write_table(table, tmp_path / "posts" / "a.parquet")
    assert score(config(tmp_path, "out", "corpus")).totals.num_copied == 0
    assert read(tmp_path / "out")["duplicate_of"].null_count == 3 * len(TASKS)


def test_what_a_worker_meets_ends_the_search_with_its_own_line(
    tmp_path: Path, texts: list[str | None], capfd: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path, "out", "corpus")
    ledger = Ledger(settings.output.uri)
    plan = Job.resolve(settings).open_run(ledger)
    [path] = (tmp_path / "out" / "_run").glob("plan-*")
    path.unlink()
    with pytest.raises(InputError, match=f"_run/{path.name} is missing"):
        find_duplicates(settings, plan, ledger)
    assert not (tmp_path / "out" / "_run" / "duplicates.parquet").exists()
    assert "Traceback" not in "".join(capfd.readouterr())


SECRET = "只有我知道的一句话"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError(f"cannot convert {SECRET}"), "InternalError", "internal error: ValueError at "),
        (OSError(f"{SECRET}: AWS Error SLOW_DOWN during GetObject"), "InterruptedRunError", "(SLOW_DOWN)"),
        (StorageError("s3://a: see to the network"), "StorageError", "s3://a: see to the network"),
    ],
)
def test_an_error_is_told_without_the_post_that_it_quotes_and_the_others_stop(
    error: Exception,
    kind: str,
    message: str,
    tmp_path: Path,
    texts: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config(tmp_path, "out", "corpus")
    Job.resolve(settings).open_run(Ledger(settings.output.uri))
    board = ray.remote(num_cpus=0)(RunBoard).remote([])
    num_reads = 0

    def read(*_: Any) -> None:
        nonlocal num_reads
        num_reads += 1
        raise error

    monkeypatch.setattr(ShardReader, "read", read)
    for start in (0, 5):
        tables = list(_hashes({"start": [start], "stop": [start + 5]}, settings, board))
        assert sum(table.num_rows for table in tables) == 0
    assert num_reads == 1
    found, line = ray.get(board.news.remote()).error
    assert found == kind
    assert message in line
    assert SECRET not in line
