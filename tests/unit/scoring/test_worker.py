"""A worker by itself, without Ray: what it tells the driver, and what it must not."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm.config import ScoreConfig
from mentalglm.corpus import plan_corpus
from mentalglm.engine.protocol import Completion, Request
from mentalglm.errors import ConfigError
from mentalglm.scoring.ledger import Ledger
from mentalglm.scoring.worker import RunBoard, RunSpec, ShardScorer
from mentalglm.tasks import load_task

SECRET = "只有我知道的一句话"


class LocalBoard:
    """RunBoard with the calling convention of a Ray actor."""

    def __init__(self) -> None:
        self.board = RunBoard()
        self.report = self._method(self.board.report)
        self.is_stopped = self._method(self.board.is_stopped)

    @staticmethod
    def _method(function: Any) -> Any:
        class Method:
            @staticmethod
            def remote(*arguments: Any) -> "asyncio.Future[Any]":
                future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                future.set_result(function(*arguments))
                return future

        return Method


@pytest.fixture
def board() -> LocalBoard:
    return LocalBoard()


@pytest.fixture
def scorer(tmp_path: Path, board: LocalBoard) -> ShardScorer:
    table = pa.table({"post_id": ["1", "2", "3"], "text": [SECRET, "好", "坏"]})
    pq.write_table(table, tmp_path / "posts.parquet")
    config = ScoreConfig.model_validate(
        {
            "input": {"uri": str(tmp_path / "posts.parquet")},
            "output": {"uri": str(tmp_path / "out")},
            "tasks": ["suicide_risk"],
            "engine": {"kind": "echo"},
            "shard_rows": 1,
        }
    )
    Ledger(config.output.uri).create({}, plan_corpus(config.input, config.shard_rows))
    return ShardScorer(RunSpec(config, (load_task("suicide_risk"),), None, 0, {}, 2), board)


def score(scorer: ShardScorer, *shards: int) -> list[dict[str, Any]]:
    async def run() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(scorer({"shard": [shard]}) for shard in shards)))

    return asyncio.run(run())


def test_a_shard_becomes_its_commit_record(scorer: ShardScorer) -> None:
    [answer] = score(scorer, 1)
    assert answer["error"] == [""]
    assert json.loads(answer["commit"][0])["statuses"] == {"suicide_risk": {"ok": 1}}


def test_a_stopped_run_begins_no_shard(scorer: ShardScorer, board: LocalBoard) -> None:
    board.board.stop()
    assert score(scorer, 0, 1) == [{"commit": [""], "error": [""]}] * 2


class BrokenEngine:
    """Fails with a message that quotes the prompt, as libraries do."""

    def __init__(self, kind: type[Exception]) -> None:
        self.kind = kind
        self.description: dict[str, str] = {}
        self.num_calls = 0

    async def complete(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Completion]]:
        self.num_calls += 1
        raise self.kind(f"cannot handle {requests[0].prompt.user}")
        yield


def test_a_defect_is_told_by_class_and_place_and_never_with_its_message(scorer: ShardScorer) -> None:
    engine = scorer._engine = BrokenEngine(ValueError)  # type: ignore[assignment]
    answers = score(scorer, 0)
    kind, message = json.loads(answers[0]["error"][0])
    assert kind == "InternalError"
    assert "ValueError at" in message
    assert SECRET not in message
    # The verdict stands: no other shard is tried on a broken engine.
    assert score(scorer, 1)[0]["error"] == answers[0]["error"]
    assert engine.num_calls == 1


def test_input_that_vanishes_ends_the_run_and_commits_nothing(scorer: ShardScorer, tmp_path: Path) -> None:
    (tmp_path / "posts.parquet").rename(tmp_path / "elsewhere.parquet")
    kind, message = json.loads(score(scorer, 0)[0]["error"][0])
    assert (kind, "posts.parquet" in message) == ("InputError", True)
    assert not (tmp_path / "out" / "_run" / "commits").exists()


def test_an_error_for_the_user_is_told_as_it_is(scorer: ShardScorer) -> None:
    scorer._engine = BrokenEngine(ConfigError)  # type: ignore[assignment]
    kind, message = json.loads(score(scorer, 1)[0]["error"][0])
    assert (kind, message.startswith("cannot handle")) == ("ConfigError", True)
