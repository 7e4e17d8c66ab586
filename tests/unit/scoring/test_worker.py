"""A worker by itself, without Ray: what it tells the driver, and what it must not."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm.config import ScoreConfig
from mentalglm.corpus import plan_corpus
from mentalglm.engine.protocol import Completion, FollowUp, Request
from mentalglm.errors import ConfigError
from mentalglm.scoring.board import RunBoard
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.scoring.run.parts import PartWriter
from mentalglm.scoring.worker import RunSpec, ShardScorer
from mentalglm.tasks import load_task

SECRET = "只有我知道的一句话"


class LocalBoard:
    """RunBoard with the calling convention of a Ray actor."""

    def __init__(self, num_shards: int = 3) -> None:
        self.board = RunBoard(range(num_shards))
        for name in ("begin", "next", "start", "set_waiting", "report", "commit", "fail", "is_stopped", "is_heard_of"):
            setattr(self, name, self._method(getattr(self.board, name)))

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
    Ledger(config.output.uri).create({}, plan_corpus(config.input, config.shard_rows), {})
    return ShardScorer(
        RunSpec(config, (load_task("suicide_risk"),), None, {}, lease_epoch=1, shards_in_flight=2), board
    )


def score(scorer: ShardScorer, board: LocalBoard, num_lanes: int = 1) -> tuple[list[dict[str, Any]], Any]:
    """(commit records by shard, error) when all lanes have ended."""

    async def run() -> None:
        await asyncio.gather(*(scorer({"lane": [lane]}) for lane in range(num_lanes)))

    asyncio.run(run())
    news = board.board.news()
    assert news.num_working == 0 or news.error
    return sorted(map(json.loads, news.commits), key=lambda record: record["shard"]), news.error


def test_shards_become_their_commit_records(scorer: ShardScorer, board: LocalBoard) -> None:
    commits, error = score(scorer, board, num_lanes=2)
    assert error is None
    assert [(each["shard"], each["statuses"]) for each in commits] == [
        (n, {"suicide_risk": {"ok": 1}}) for n in range(3)
    ]


def test_a_stopped_run_begins_no_shard(scorer: ShardScorer, board: LocalBoard) -> None:
    board.board.stop()
    assert score(scorer, board, num_lanes=2) == ([], None)


class BrokenEngine:
    """Fails with a message that quotes the prompt, as libraries do."""

    def __init__(self, kind: type[Exception]) -> None:
        self.kind = kind
        self.description: dict[str, str] = {}
        self.num_restarts = 0
        self.seconds: dict[str, float] = {}
        self.num_calls = 0

    async def complete(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> AsyncIterator[tuple[int, Completion]]:
        self.num_calls += 1
        raise self.kind(f"cannot handle {requests[0].prompt.user}")
        yield


def test_a_defect_is_told_by_class_and_place_and_never_with_its_message(scorer: ShardScorer, board: LocalBoard) -> None:
    engine = scorer._engine = BrokenEngine(ValueError)  # type: ignore[assignment]
    commits, (kind, message) = score(scorer, board, num_lanes=2)
    assert commits == []
    assert kind == "InternalError"
    assert "ValueError at" in message
    assert SECRET not in message
    assert engine.num_calls <= 2  # no other shard is tried on a broken engine


def test_input_that_vanishes_ends_the_run_and_commits_nothing(
    scorer: ShardScorer, board: LocalBoard, tmp_path: Path
) -> None:
    (tmp_path / "posts.parquet").rename(tmp_path / "elsewhere.parquet")
    _, (kind, message) = score(scorer, board)
    assert (kind, "posts.parquet" in message) == ("InputError", True)
    assert not (tmp_path / "out" / "_run" / "commits").exists()


def test_input_that_cannot_be_read_for_now_interrupts_the_run_and_gives_no_row_up(
    scorer: ShardScorer, board: LocalBoard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def read(*_: Any) -> None:
        raise OSError(f"When reading {SECRET}: AWS Error SLOW_DOWN during GetObject operation")

    monkeypatch.setattr(scorer._reader, "read", read)
    _, (kind, message) = score(scorer, board)
    assert (kind, "cannot be read for now (SLOW_DOWN)" in message, SECRET in message) == (
        "InterruptedRunError",
        True,
        False,
    )
    assert not (tmp_path / "out" / "_run" / "commits").exists()


def test_an_error_for_the_user_is_told_as_it_is(scorer: ShardScorer, board: LocalBoard) -> None:
    scorer._engine = BrokenEngine(ConfigError)  # type: ignore[assignment]
    _, (kind, message) = score(scorer, board)
    assert (kind, message.startswith("cannot handle")) == ("ConfigError", True)


def test_a_shard_whose_worker_dies_again_and_again_is_given_up_row_by_row_then_as_a_whole(
    scorer: ShardScorer, board: LocalBoard
) -> None:
    board.board._deaths.update({0: 4, 1: 5})
    commits, _ = score(scorer, board)
    assert [each["statuses"] for each in commits] == [
        {"suicide_risk": {"engine_error": 1}},  # the fifth time: read, not asked
        {},  # the sixth time: not even read
        {"suicide_risk": {"ok": 1}},
    ]
    assert commits[1]["quarantined"] == "worker_crash"


def test_a_shard_whose_worker_died_after_its_commit_is_not_scored_again(scorer: ShardScorer, board: LocalBoard) -> None:
    first = score(scorer, board)
    scorer._engine = BrokenEngine(ValueError)  # type: ignore[assignment]
    again = LocalBoard()
    again.board._deaths.update([0, 1, 2])
    scorer._board = again
    assert score(scorer, again) == first


class TestRunBoard:
    """Who gets which shard."""

    def test_every_shard_is_given_out_once(self) -> None:
        board = RunBoard([4, 7, 9])
        assert [board.next(0), board.next(1), board.next(2)] == [(4, 0), (7, 0), (9, 0)]
        for lane, shard in enumerate([4, 7, 9]):
            board.commit(lane, shard, str(shard))
        assert board.next(0) is None
        assert board.news().commits == ["4", "7", "9"]
        assert board.news().commits == []

    def test_the_shard_of_a_lane_that_begins_anew_is_given_out_again_first(self) -> None:
        board = RunBoard([1, 2, 3])
        board.next(0), board.next(1), board.start(0)
        board.begin(0)
        assert board.next(0) == (1, 1)
        assert board.next(2) == (3, 0)

    def test_a_shard_that_only_waited_when_a_worker_died_was_not_started(self) -> None:
        board = RunBoard([1, 2])
        board.next(0), board.next(1)
        board.start(0)
        board.begin(0), board.begin(1)
        assert {board.next(0), board.next(1)} == {(1, 1), (2, 0)}

    def test_a_shard_that_waits_for_others_when_a_worker_dies_is_no_suspect_until_it_goes_on(self) -> None:
        board = RunBoard([1, 2])
        board.next(0), board.next(1)
        board.start(0), board.start(1)
        board.set_waiting(2, True)
        board.begin(0), board.begin(1)
        assert {board.next(0), board.next(1)} == {(1, 1), (2, 0)}
        lane = next(lane for lane, held in board._held.items() if held.shard == 2)
        board.start(lane), board.set_waiting(2, True), board.set_waiting(2, False)
        board.begin(lane)
        assert board.next(lane) == (2, 1)

    def test_an_idle_lane_waits_while_others_work_and_takes_over_a_silent_ones_shard(self) -> None:
        board = RunBoard([1], silence_s=60)
        board.next(0)
        assert board.next(1) == (None, 0)
        board._held[0].heard_of -= 61
        assert board.news().num_working == 0
        assert board.next(1) == (1, 0)
        assert board.next(2) == (None, 0)
        board._held[1].heard_of -= 61  # this one is lost too
        assert board.next(2) == (1, 0)
        board._held[2].heard_of -= 61
        assert board.next(3) == (None, 0)  # it is the shard, perhaps
        board.commit(2, 1, "first")
        assert board.next(3) is None
        board.begin(0)  # its node is back: the shard is done
        assert board.next(0) is None
        assert board.news().commits == ["first"]

    def test_a_shard_is_heard_of_while_a_lane_that_has_it_is(self) -> None:
        board = RunBoard([1, 2], silence_s=60)
        board.next(0)
        assert board.is_heard_of([1, 2])
        assert not board.is_heard_of([2])
        board._held[0].heard_of -= 61
        assert not board.is_heard_of([1])
        board.report(1, {})
        assert board.is_heard_of([1])
        board.commit(0, 1, "done")
        assert not board.is_heard_of([1])

    def test_a_lane_that_was_given_up_and_lives_changes_nothing(self) -> None:
        board = RunBoard([0, 1])
        board.next(0)  # its node is declared dead, and lives on
        board.begin(0)
        assert board.next(1) == (0, 0)
        assert board.next(0) == (1, 0)
        board.commit(0, 0, "of the old lane 0")
        board.commit(1, 0, "of lane 1")
        assert board.news().commits == ["of the old lane 0"]
        board.commit(0, 1, "of the new lane 0")
        assert board.news().commits == ["of the new lane 0"]

    def test_of_two_lanes_with_one_shard_the_first_commit_is_told(self) -> None:
        board = RunBoard([1], silence_s=-1)
        board.next(0), board.next(1)
        board.report(1, {"ok": 3})
        assert board.news().running == {"ok": 3}
        board.commit(0, 1, "first")
        assert board.news().running == {}
        board.commit(1, 1, "second")
        assert board.news().commits == []

    def test_the_first_error_stands_and_nothing_more_is_begun(self) -> None:
        board = RunBoard([1, 2])
        board.next(0)
        board.fail("ConfigError", "a")
        board.fail("InputError", "b")
        assert board.next(1) is None
        assert board.news().error == ("ConfigError", "a")


class TerseEngine:
    """Cuts answers off that are not given twenty tokens."""

    def __init__(self) -> None:
        self.description: dict[str, str] = {}
        self.num_restarts = 0
        self.seconds: dict[str, float] = {}
        self.max_tokens: list[int | None] = []

    async def complete(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> AsyncIterator[tuple[int, Completion]]:
        assert follow_up is not None
        for index, request in enumerate(requests):
            asked: Request | None = request
            while asked is not None:
                self.max_tokens.append(asked.max_tokens)
                is_cut = SECRET in asked.prompt.user and asked.max_tokens != 20
                answer = "这篇帖子" if is_cut else "这篇帖子体现了低自杀风险。理由：无。"
                completion = Completion(answer, "length" if is_cut else "stop")
                asked = follow_up(index, completion)
            yield index, completion


def test_answers_that_were_cut_off_are_asked_for_once_more_with_more_tokens(
    scorer: ShardScorer, board: LocalBoard, tmp_path: Path
) -> None:
    engine = scorer._engine = TerseEngine()  # type: ignore[assignment]
    generation = scorer._spec.config.generation.model_copy(update={"max_tokens": 10, "retry_max_tokens": 20})
    config = scorer._spec.config.model_copy(update={"generation": generation})
    scorer._spec = replace(scorer._spec, config=config)
    commits, _ = score(scorer, board)
    assert [each["statuses"]["suicide_risk"] for each in commits] == [{"ok": 1}] * 3
    assert engine.max_tokens == [None, 20, None, None]
    flags = [
        pq.read_table(tmp_path / "out" / "_run" / "shards" / "task=suicide_risk" / f"{shard:08d}.parquet")["flags"]
        for shard in range(3)
    ]
    assert ["asked_again" in each.to_pylist()[0] for each in flags] == [True, False, False]


def test_without_that_setting_they_stay_truncated(scorer: ShardScorer, board: LocalBoard) -> None:
    scorer._engine = TerseEngine()  # type: ignore[assignment]
    commits, _ = score(scorer, board)
    assert [each["statuses"]["suicide_risk"] for each in commits] == [{"truncated": 1}, {"ok": 1}, {"ok": 1}]


@pytest.fixture
def copying(scorer: ShardScorer, tmp_path: Path) -> ShardScorer:
    """A worker for whom the posts of shards 1 and 2 have the text of shard 0."""
    scorer._spec = replace(scorer._spec, config=scorer._spec.config.model_copy(update={"dedup": "corpus"}))
    pairs = pa.table({"row": pa.array([0, 1, 2], pa.int64()), "original": pa.array([0, 0, 0], pa.int64())})
    pq.write_table(pairs, tmp_path / "out" / "_run" / "duplicates.parquet")
    return scorer


def originals(tmp_path: Path, num_shards: int) -> list[str | None]:
    folder = tmp_path / "out" / "_run" / "shards" / "task=suicide_risk"
    tables = [pq.read_table(folder / f"{shard:08d}.parquet") for shard in range(num_shards)]
    return [table["duplicate_of"][0].as_py() for table in tables]


def test_shards_wait_for_those_whose_results_they_copy_also_where_all_are_suspects(
    copying: ShardScorer, board: LocalBoard, tmp_path: Path
) -> None:
    board.board._left.rotate(1)  # the last one is given out first
    board.board._deaths.update({0: 1, 1: 1, 2: 1})
    commits, error = score(copying, board, num_lanes=3)
    assert error is None
    assert [each["num_copied"] for each in commits] == [0, 1, 1]
    assert originals(tmp_path, 3) == [None, "1", "1"]


def test_who_waits_for_a_shard_that_nobody_begins_any_more_ends_with_the_run(
    copying: ShardScorer, board: LocalBoard
) -> None:
    board.board._left.rotate(1)

    async def run() -> None:
        lane = asyncio.create_task(copying({"lane": [0]}))
        await asyncio.sleep(0.2)
        board.board.stop()
        await asyncio.wait_for(lane, 10)

    asyncio.run(run())
    assert board.board.news().error == ("InterruptedRunError", "the run was stopped; run the same command again")


def test_copies_of_a_shard_that_never_comes_are_asked_for_themselves(
    copying: ShardScorer, board: LocalBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mentalglm.scoring.worker._MAX_WAIT_S", 0.1)
    board.board._left.rotate(1)
    commits, error = score(copying, board)
    assert error is None
    assert originals(tmp_path, 3) == [None, "1", None]
    assert [each["statuses"] for each in commits] == [{"suicide_risk": {"ok": 1}}] * 3


def test_copies_wait_for_a_shard_that_takes_long_as_long_as_it_is_heard_of(
    copying: ShardScorer, board: LocalBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mentalglm.scoring.worker._MAX_WAIT_S", 0.1)
    monkeypatch.setattr("mentalglm.scoring.worker._IDLE_S", 0.02)
    assert copying._engine is not None
    complete = copying._engine.complete

    async def take_long(
        requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> AsyncIterator[tuple[int, Completion]]:
        await asyncio.sleep(0.5 if requests else 0.0)
        async for each in complete(requests, follow_up):
            yield each

    copying._engine.complete = take_long  # type: ignore[method-assign]
    _, error = score(copying, board, num_lanes=3)
    assert error is None
    assert originals(tmp_path, 3) == [None, "1", "1"]


def test_copies_of_a_shard_that_was_given_up_are_asked_for_themselves(
    copying: ShardScorer, board: LocalBoard, tmp_path: Path
) -> None:
    board.board._deaths.update({0: 4})
    commits, error = score(copying, board)
    assert error is None
    assert [each["statuses"]["suicide_risk"] for each in commits] == [{"engine_error": 1}, {"ok": 1}, {"ok": 1}]
    assert originals(tmp_path, 3) == [None, None, None]


def begun(scorer: ShardScorer, tmp_path: Path, texts: list[str], shard_rows: int) -> ScoreConfig:
    """The config of another run, which is begun."""
    table = pa.table({"post_id": [str(n) for n in range(len(texts))], "text": texts})
    pq.write_table(table, tmp_path / "others.parquet")
    config = ScoreConfig.model_validate(
        scorer._spec.config.model_dump()
        | {
            "input": {"uri": str(tmp_path / "others.parquet")},
            "output": {"uri": str(tmp_path / "others")},
            "shard_rows": shard_rows,
            "dedup": "corpus",
        }
    )
    Ledger(config.output.uri).create({}, plan_corpus(config.input, shard_rows), {})
    return config


def live(spec: RunSpec, board: LocalBoard) -> bool:
    """A worker's process with a lane for each of two shards, until all is done, or until SECRET, once it is asked for
    and the other shard waits, kills it. True: it was killed."""

    async def run() -> bool:
        scorer = ShardScorer(spec, board)
        assert scorer._engine is not None
        complete = scorer._engine.complete
        killed = asyncio.Event()

        async def die(
            requests: Sequence[Request], follow_up: FollowUp | None = None
        ) -> AsyncIterator[tuple[int, Completion]]:
            if any(SECRET in request.prompt.user for request in requests):
                for _ in range(200):
                    if any(held.shard == 1 and held.statuses for held in board.board._held.values()):  # it has reported
                        break
                    await asyncio.sleep(0.01)
                killed.set()
                await asyncio.sleep(60)
            async for each in complete(requests, follow_up):
                yield each

        scorer._engine.complete = die  # type: ignore[method-assign]
        lanes = asyncio.gather(*(scorer({"lane": [lane]}) for lane in range(2)))
        death = asyncio.create_task(killed.wait())
        await asyncio.wait([death, lanes], return_when=asyncio.FIRST_COMPLETED)
        scorer._board = LocalBoard()  # a process that is killed has no last words
        lanes.cancel(), death.cancel()
        await asyncio.gather(lanes, death, return_exceptions=True)
        return killed.is_set()

    return asyncio.run(run())


def test_a_shard_that_only_waits_for_one_that_kills_its_worker_is_not_given_up_with_it(
    scorer: ShardScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mentalglm.scoring.worker._IDLE_S", 0.02)
    config = begun(scorer, tmp_path, ["转发", SECRET, "转发", "无辜"], shard_rows=2)
    pairs = pa.table({"row": pa.array([0, 2], pa.int64()), "original": pa.array([0, 0], pa.int64())})
    pq.write_table(pairs, f"{config.output.uri}/_run/duplicates.parquet")
    board = LocalBoard(2)
    board.board._left.rotate(1)  # the copy is asked for first, and waits
    num_deaths = 0
    while live(replace(scorer._spec, config=config), board):
        num_deaths += 1
    assert num_deaths == 4
    commits = sorted(map(json.loads, board.board.news().commits), key=lambda record: record["shard"])
    assert [each["statuses"] for each in commits] == [
        {"suicide_risk": {"engine_error": 2}},
        {"suicide_risk": {"ok": 2}},
    ]


def test_a_retry_asks_once_for_each_text_of_a_shard(scorer: ShardScorer, tmp_path: Path) -> None:
    config = begun(scorer, tmp_path, ["又失败了", "好", "又失败了", "坏", "又失败了", "坏", ""], shard_rows=7)
    tasks = (load_task("suicide_risk"), load_task("cognitive_distortion"))
    rows = {0: {"suicide_risk": [0, 2, 3, 5, 6], "cognitive_distortion": [2, 4]}}
    spec = replace(scorer._spec, config=config, tasks=tasks, folder="_run/retries/000", rows=rows)
    board = LocalBoard(1)
    commits, error = score(ShardScorer(spec, board), board)
    assert error is None
    assert commits[0]["num_copied"] == 3
    folder = tmp_path / "others" / "_run" / "retries" / "000" / "shards"
    for task, ids, of in (
        ("suicide_risk", ["0", "2", "3", "5", "6"], [None, "0", None, "3", None]),
        ("cognitive_distortion", ["2", "4"], [None, "2"]),
    ):
        table = pq.read_table(folder / f"task={task}" / "00000000.parquet")
        assert table["post_id"].to_pylist() == ids
        assert table["duplicate_of"].to_pylist() == of
        is_asked = [each is None and post_id != "6" for each, post_id in zip(of, ids, strict=True)]
        assert [each is not None for each in table["num_output_tokens"].to_pylist()] == is_asked


def test_explanations_are_asked_for_once_for_each_text_and_labels_stay(scorer: ShardScorer, tmp_path: Path) -> None:
    texts = ["又", "好", "又", "坏", "又", "", "一", "二"]
    config = begun(scorer, tmp_path, texts, shard_rows=4).model_copy(update={"explain": "none", "dedup": "shard"})
    spec = replace(scorer._spec, config=config, provenance={"run_id": "r"})
    score(ShardScorer(spec, board := LocalBoard(2)), board)
    ledger = Ledger(config.output.uri)
    PartWriter(ledger, target_bytes=1 << 20).flush()
    labels = {row["post_id"]: row["labels"] for row in pq.read_table(tmp_path / "others" / "data").to_pylist()}

    policy = config.model_copy(update={"explain": "all"})
    spec = replace(spec, config=policy, folder="_run/retries/000", explains=[(0, 2, 0)])
    board = LocalBoard(2)
    board.board._deaths.update({1: 4})  # read, not asked
    commits, error = score(ShardScorer(spec, board), board)
    assert error is None
    assert [each["statuses"] for each in commits] == [{"suicide_risk": {"ok": 4}}, {"suicide_risk": {"ok": 3}}]
    assert [each["explained"] for each in commits] == [{"suicide_risk": 4}, {"suicide_risk": 0}]
    folder = tmp_path / "others" / "_run" / "retries" / "000" / "shards" / "task=suicide_risk"
    asked, given_up = (pq.read_table(folder / f"{shard:08d}.parquet").to_pylist() for shard in range(2))
    assert all(row["labels"] == labels[row["post_id"]] for row in (*asked, *given_up))
    assert [row["num_output_tokens"] is not None for row in asked] == [True, True, False, True]
    assert asked[0]["explanation"] == asked[2]["explanation"]
    assert [row["flags"] for row in given_up] == [["explanation_failed"]] * 3
