"""Explanations for a finished run: whatever happens and whenever, each row is in `data/` once, with its own labels."""

import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mentalglm.config import ScoreConfig
from mentalglm.engine.protocol import Completion
from mentalglm.errors import ConfigError, InternalError, InterruptedRunError
from mentalglm.scoring.cascade import Inquiry
from mentalglm.scoring.predictions import Outcome, prediction_table
from mentalglm.scoring.questions import Question, questions_of
from mentalglm.scoring.rounds.explain import ExplainSummary, open_explanations, stop_explanations, with_room
from mentalglm.scoring.rounds.retry import check_statuses, open_round
from mentalglm.scoring.rounds.round import effective_totals, unfinished_round
from mentalglm.scoring.rounds.unexplained import CHOSEN_BY, RowIndex, UnexplainedRows, choose
from mentalglm.tasks import load_task, render_answer
from tests.unit.scoring.test_parts import KEPT, SCHEMA, Killed
from tests.unit.scoring.test_retry import NUM_ROWS, Corpus, Key, Run, dying_at

TASKS = tuple(load_task(name) for name in ("suicide_risk", "cognitive_distortion"))
RISK, PATHWAY = TASKS[0], load_task("cognitive_pathway")
LABELS = {"suicide_risk": [("low_risk",), ("high_risk",)], "cognitive_distortion": [(), ("labeling",)]}
IN_VAIN = ("explanation_failed", "explanation_disagrees", "explanation_missing")
DEFAULT = check_statuses([])


def config(explain: str, **changes: Any) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {"input": {"uri": "a"}, "output": {"uri": "b"}, "tasks": list(LABELS), "explain": explain} | changes
    )


class LabelledCorpus(Corpus):
    """An engine that has given labels, each time maybe others, and no explanations."""

    def outcome(self, attempt: int, key: Key) -> Outcome:
        outcome = super().outcome(attempt, key)
        if outcome.status != "ok":
            return outcome
        labels = random.Random(f"{attempt}/{key}").choice(LABELS[key[0].partition("/")[0]])
        return replace(outcome, labels=labels, explanation=None, num_prompt_tokens=9, finish_reason="stop")


def labels_only(folder: Path | str, corpus: Corpus, *, partitioned: bool = False, target_bytes: int = 10**9) -> Run:
    return Run(folder, corpus, partitioned=partitioned, target_bytes=target_bytes)


def add(
    run: Run,
    policy: ScoreConfig,
    answer: Callable[[Outcome], Outcome] | None = None,
    most_shards: int | None = None,
) -> ExplainSummary | None:
    """What `mentalglm explain` does, with an engine that says for which labels it explains. It is
    interrupted when it has committed `most_shards`."""
    adapters = {"model": {"adapters": dict.fromkeys(("S1", "S2"))}} if "adapter=" in run.corpus.tasks[0] else {}
    fields = {
        "input": {"uri": "a", "keep_columns": KEPT.names},
        "output": {"uri": "b", "partition_by": run.partition_by},
    }
    policy = ScoreConfig.model_validate(policy.model_dump() | fields | adapters)
    current = open_explanations(run.ledger, policy, TASKS, lambda: None)
    if current is None:
        return None
    wanted = UnexplainedRows(run.ledger, policy, questions_of(policy, TASKS), current.parts())
    for number, shard in enumerate(current.pending()):
        if number == most_shards:
            raise InterruptedRunError("for the test")
        posts = run.corpus.posts(shard)
        outcomes: dict[str, list[Outcome]] = {}
        tables: dict[str, pa.Table] = {}
        for key, rows in wanted.of(shard, posts).items():
            outcomes[key] = [
                answer(known) if answer else replace(known, explanation=str(known.labels), num_output_tokens=3)
                for known in rows.values()
            ]
            every = [Outcome("engine_error")] * NUM_ROWS
            for row, outcome in zip(rows, outcomes[key], strict=True):
                every[row] = outcome
            tables[key] = prediction_table(SCHEMA, posts, every).take(list(rows))
        current.ledger.commit(shard, tables, outcomes, {"run_id": "r"}, engine={"engine": "x"}, seconds=0.0)
    return current.finish(run.partition_by)


def without_explanation(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("explanation", "num_output_tokens", "flags", "finish_reason")
    return [{name: value for name, value in row.items() if name not in names} for row in table]


def is_positive(row: dict[str, Any]) -> bool:
    return row["labels"] in (["high_risk"], ["labeling"])


@given(
    num_shards=st.integers(1, 5),
    num_ids=st.integers(1, 30),
    seed=st.integers(0, 10**6),
    target_bytes=st.sampled_from([1, 12_000, 10**9]),
    partitioned=st.booleans(),
    adapters=st.sampled_from([(), ("S1", "S2")]),
    rounds=st.lists(
        st.tuples(
            st.sampled_from(["positive", "all", "retry"]),
            st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=3),
        ),
        min_size=1,
        max_size=3,
    ),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_rows_are_there_once_with_their_labels_after_deaths_at_any_write(
    num_shards: int,
    num_ids: int,
    seed: int,
    target_bytes: int,
    partitioned: bool,
    adapters: Sequence[str],
    rounds: Sequence[tuple[str, list[tuple[int, bool]]]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        corpus = LabelledCorpus(num_shards, num_ids, seed, adapters)
        run = labels_only(name, corpus, partitioned=partitioned, target_bytes=target_bytes)
        for what, deaths in rounds:
            before = run.table()
            before_ids = Counter((row["task"], row["place"], row["post_id"]) for row in before)

            def go(what: str = what) -> object:
                return run.retry() if what == "retry" else add(run, config(what))

            num_finished = run.num_finished()
            for step, after in deaths:
                with dying_at(step, after), suppress(Killed):
                    if run.num_finished() == num_finished:
                        go()
                table = run.table()
                assert Counter((row["task"], row["place"], row["post_id"]) for row in table) == before_ids
                if what != "retry":
                    assert without_explanation(table) == without_explanation(before)
            if run.num_finished() == num_finished:
                go()
            if what == "retry":
                continue
            # The same post, twice in the input and labelled differently, may take one call for each.
            for _ in range(NUM_ROWS * num_shards):
                if go() is None:
                    break
            table = run.table()
            assert without_explanation(table) == without_explanation(before)
            for old, new in zip(before, table, strict=True):
                is_wanted = old["status"] == "ok" and (what == "all" or is_positive(old))
                if is_wanted and old["explanation"] is None:
                    assert new["explanation"] == str(tuple(old["labels"]))
                    assert new["num_output_tokens"] == old["num_output_tokens"] + 3
                else:
                    assert new == old
            explained = Counter(row["task"] for row in table if row["explanation"])
            assert effective_totals(run.ledger).explained == explained
            manifest = json.loads((run.folder / "manifest.json").read_bytes())
            added = [each["now"]["explained"] for each in manifest.get("explanations", ())]
            assert sum(added) == explained.total()
        assert unfinished_round(run.ledger) is None


@given(
    explain=st.sampled_from(["none", "positive", "uncertain", "all"]),
    sample=st.one_of(st.floats(0, 1), st.fixed_dictionaries({"low_risk": st.floats(0, 1), "none": st.just(0.5)})),
    threshold=st.floats(0.01, 1),
    rows=st.lists(
        st.tuples(
            st.sampled_from(["low", "high", "pathway", "nothing"]),
            st.one_of(st.none(), st.floats(0, 1, width=32), st.just(0.9), st.just(0.1)),
            st.integers(0, 2**64),
        ),
        max_size=20,
    ),
)
@settings(max_examples=150, deadline=None)
def test_rows_are_chosen_later_as_they_would_have_been_at_once(
    explain: str, sample: Any, threshold: float, rows: list[tuple[str, float | None, int]]
) -> None:
    policy = config(explain, cascade={"sample": sample, "uncertain_below": threshold})
    answers = {
        "low": (RISK, render_answer(RISK, ["low_risk"], "")),
        "high": (RISK, render_answer(RISK, ["high_risk"], "")),
        "pathway": (PATHWAY, render_answer(PATHWAY, [PATHWAY.answerable[0]], "")),
        "nothing": (PATHWAY, render_answer(PATHWAY, [], "")),
    }
    for task in (RISK, PATHWAY):
        records, at_once = [], []
        for kind, confidence, number in rows:
            if answers[kind][0] is not task:
                continue
            plain = Inquiry(config("none"), Question(task), "一条帖子", f"{number:032x}")
            plain.take(Completion(answers[kind][1], "stop", 9, 5, is_head=True))
            assert plain.outcome is not None
            known = replace(plain.outcome, confidence=confidence)
            asked = Inquiry(policy, Question(task), "一条帖子", f"{number:032x}")
            at_once.append((asked._is_to_explain(known), "explanation_sampled" in asked._done))
            records.append(
                {name: getattr(known, name, None) for name in CHOSEN_BY} | {"text_hash": f"{number:032x}", "flags": []}
            )
        schema = pa.schema([SCHEMA.field(name) for name in CHOSEN_BY])
        table = pa.Table.from_pylist(records, schema)
        chosen, sampled = choose(policy, task, table)
        later = dict(zip(chosen.tolist(), sampled.tolist(), strict=True))
        assert [(row in later, later.get(row, False)) for row in range(len(records))] == at_once


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"))), st.lists(st.sampled_from("abcd"), max_size=8)
)
def test_rows_are_found_once_each(known: list[tuple[str, str]], wanted: list[str]) -> None:
    def table(rows: Sequence[tuple[str, str]]) -> pa.Table:
        ids, hashes = [row[0] for row in rows], [row[1] for row in rows]
        return pa.table({"post_id": pa.array(ids, pa.string()), "text_hash": pa.array(hashes, pa.string())})

    rows = [(each, "x") for each in wanted]
    found = RowIndex(table(known)).find(table(rows)).tolist()
    hits = [row for row in found if row >= 0]
    assert len(set(hits)) == len(hits)
    assert all(known[row] == mine for row, mine in zip(found, rows, strict=True) if row >= 0)
    assert Counter(known[row] for row in hits) == Counter(known) & Counter(rows)


def test_rows_that_were_asked_in_vain_are_asked_again_where_that_can_help(tmp_path: Path) -> None:
    run = labels_only(tmp_path, LabelledCorpus(3, 100, seed=1))
    num_wanted = sum(row["status"] == "ok" for row in run.table())
    turn = iter(range(10**6))

    def answer(known: Outcome) -> Outcome:
        return replace(known, flags=(*known.flags, IN_VAIN[next(turn) % 3]))

    summary = add(run, config("all"), answer)
    assert summary is not None
    assert (summary.num_wanted, summary.now["explained"]) == (num_wanted, 0)
    counts = Counter(flag for row in run.table() for flag in row["flags"] if flag in IN_VAIN)
    assert {flag: summary.now[flag] for flag in IN_VAIN} == counts
    assert all(f" {n} " in summary.describe() for n in counts.values())
    again = add(run, config("all"))
    assert again is not None
    assert again.now["explained"] == again.num_wanted == counts["explanation_failed"]
    assert all(("explanation_failed" in row["flags"]) is False for row in run.table())
    assert add(run, config("all")) is None


def test_an_explanation_is_never_of_other_labels_than_its_row(tmp_path: Path) -> None:
    run = labels_only(tmp_path, LabelledCorpus(3, 1, seed=1))  # one post again and again, labelled differently
    for _ in range(3 * NUM_ROWS):
        if add(run, config("all")) is None:
            break
    rows = [row for row in run.table() if row["status"] == "ok"]
    assert len({tuple(row["labels"]) for row in rows}) > 2
    assert all(row["explanation"] == str(tuple(row["labels"])) for row in rows)


def test_files_say_what_was_added_and_those_without_stay_as_they_are(tmp_path: Path) -> None:
    run = labels_only(tmp_path, LabelledCorpus(5, 1000, seed=2), target_bytes=1)
    files = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.parquet")}
    summary = add(run, config("positive"))
    assert summary is not None
    added = 0
    for path, data in files.items():
        entries = json.loads(pq.read_metadata(path).metadata[b"mentalglm"]).get("explanations", [])
        num_wanted = sum(is_positive(row) for row in pq.ParquetFile(path).read().to_pylist())
        assert bool(entries) == bool(num_wanted) == (path.read_bytes() != data)
        for entry in entries:
            assert (entry["round"], entry["explain"], entry["now"]["explained"]) == (0, "positive", num_wanted)
            added += entry["now"]["explained"]
    assert added == summary.now["explained"] > 0
    assert "(explain: positive)" in (tmp_path / "README.md").read_text()


def test_rows_retried_after_a_call_are_explained_by_the_next(tmp_path: Path) -> None:
    run = labels_only(tmp_path, LabelledCorpus(4, 1000, seed=3))
    run.corpus.is_readable = lambda attempt, shard: True  # type: ignore[method-assign]
    assert add(run, config("all")) is not None
    retried = run.retry()
    assert retried is not None
    assert retried.retried["ok"] > 0
    again = add(run, config("all"))
    assert again is not None
    assert again.now["explained"] == retried.retried["ok"]
    assert effective_totals(run.ledger).explained.total() == sum(row["status"] == "ok" for row in run.table())
    assert run.retry() is not None  # what failed again


def test_a_round_of_the_other_kind_is_finished_first(tmp_path: Path) -> None:
    run = labels_only(tmp_path, LabelledCorpus(2, 100))
    policy = config("uncertain", cascade={"sample": {"low_risk": 0.5}, "uncertain_below": 0.7})
    assert open_explanations(run.ledger, policy, TASKS, lambda: None) is not None
    with pytest.raises(
        ConfigError, match="a `mentalglm explain` was interrupted; finish it first: mentalglm explain"
    ) as error:
        open_round(run.ledger, DEFAULT)
    assert "--set explain=uncertain --set cascade.uncertain_below=0.7 --set 'cascade.sample={" in str(error.value)
    with pytest.raises(ConfigError, match="finish it first"):
        add(run, config("uncertain"))
    assert add(run, policy) is not None
    assert open_round(run.ledger, DEFAULT) is not None
    with pytest.raises(
        ConfigError, match=r"a `mentalglm retry` was interrupted; finish it first: mentalglm retry .* --status"
    ):
        add(run, config("all"))


@pytest.mark.parametrize("num_done", [0, 2])
def test_a_call_that_was_begun_by_mistake_ends_with_what_it_has(tmp_path: Path, num_done: int) -> None:
    run = labels_only(tmp_path, LabelledCorpus(4, 1000, seed=3), target_bytes=1)
    run.corpus.is_readable = lambda attempt, shard: True  # type: ignore[method-assign]
    before = run.table()
    with pytest.raises(InterruptedRunError):
        add(run, config("all"), most_shards=num_done)
    with pytest.raises(ConfigError, match=r"or end it with what it has: mentalglm explain .* --stop"):
        open_round(run.ledger, DEFAULT)
    summary = stop_explanations(run.ledger, config("none"), TASKS).finish(run.partition_by)
    assert bool(summary.now["explained"]) == bool(num_done)
    assert summary.now["explained"] < summary.num_wanted
    assert without_explanation(run.table()) == without_explanation(before)
    assert sum(row["explanation"] is not None for row in run.table()) == summary.now["explained"]
    assert f"{summary.num_wanted - summary.now['explained']} left for another call" in summary.describe()
    with pytest.raises(ConfigError, match="--stop: no `mentalglm explain`"):
        stop_explanations(run.ledger, config("none"), TASKS)
    rest = add(run, config("all"))
    assert rest is not None
    assert rest.now["explained"] + summary.now["explained"] == sum(row["status"] == "ok" for row in run.table())
    assert open_round(run.ledger, DEFAULT) is not None


def test_a_file_with_other_rows_is_not_written_over(tmp_path: Path) -> None:
    run = labels_only(tmp_path, LabelledCorpus(1, 100, seed=4))
    path = tmp_path / "data" / "task=suicide_risk" / "part-00000.parquet"

    def swap(known: Outcome) -> Outcome:
        """Something puts other ids into the file while the round is going on."""
        table = pq.ParquetFile(path).read()
        ids = pa.array([f"other {n}" for n in range(table.num_rows)])
        pq.write_table(table.set_column(0, "post_id", ids), path)
        return replace(known, explanation="x")

    with pytest.raises(InternalError, match="does not hold the rows"):
        add(run, config("all"), swap)
    assert "other 0" in pq.ParquetFile(path).read()["post_id"].to_pylist()


def test_an_answer_gets_the_room_that_a_retry_has_given_it(tmp_path: Path) -> None:
    run = labels_only(tmp_path, LabelledCorpus(3, 100, seed=3))
    assert with_room(config("all"), run.ledger) == config("all")
    assert run.retry(retry_max_tokens=512) is not None
    assert run.retry() is not None
    assert with_room(config("positive"), run.ledger) == config("positive", generation={"retry_max_tokens": 512})
    more = config("all", generation={"retry_max_tokens": 900})
    assert with_room(more, run.ledger) == more
