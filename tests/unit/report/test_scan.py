"""One pass over the predictions: the counts of a naive loop, and rows joined as sets of ids are."""

import random
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mentalglm.report.scan import Buckets, count, hash_texts, join
from mentalglm.report.sources import LabelSet, Run, Side
from mentalglm.tasks import load_task
from tests.report_runs import Row, row, write_run

PATHWAY = load_task("cognitive_pathway")
START = datetime(2025, 3, 1)


def random_rows(num_rows: int, seed: int) -> list[Row]:
    rng = random.Random(seed)
    rows = []
    for number in range(num_rows):
        labels = None
        if rng.random() < 0.9:
            labels = [slug for slug in PATHWAY.answerable if rng.random() < 0.1]
        parents = None if labels is None else sorted({str(PATHWAY.by_slug[slug].parent) for slug in labels})
        confidence = rng.choice([None, 0.0, 1.0, rng.random()])
        day = rng.choice([None, START + timedelta(days=rng.randrange(90))])
        explanation = "x" if labels and rng.random() < 0.5 else None
        rows.append(row(number, labels, parents=parents, confidence=confidence, day=day, explanation=explanation))
    return rows


def side(folder: Path, rows: list[Row]) -> Side:
    kept = pa.schema([pa.field("day", pa.timestamp("ms"))])
    write_run(folder, {PATHWAY.name: rows}, kept=kept)
    return Side(Run(str(folder), "run", {"fingerprint": {}}, None), None, "run")


def test_counts_are_those_of_a_loop(tmp_path: Path) -> None:
    rows = random_rows(700, 1)
    found = count(side(tmp_path / "run", rows).dataset(PATHWAY.name), LabelSet.of(PATHWAY), "day")
    slugs = [label.slug for label in PATHWAY.labels]
    named = [{*(each["labels"] or ()), *(each["parents"] or ())} for each in rows]
    assert found.num_rows == 700
    assert found.statuses == Counter(each["status"] for each in rows)
    assert found.labels.tolist() == [sum(slug in labels for labels in named) for slug in slugs]
    assert found.pairs[3, 8] == sum({slugs[3], slugs[8]} <= labels for labels in named)
    assert found.num_none == sum(each["labels"] == [] for each in rows)
    assert found.num_explained == sum(each["explanation"] is not None for each in rows)
    assert found.histograms["confidence"].sum() == sum(
        each["confidence"] is not None and each["status"] == "ok" for each in rows
    )
    assert found.histograms["confidence"][99] >= sum(
        each["confidence"] == 1.0 and each["status"] == "ok" for each in rows
    )
    by_day = Counter(each["day"].toordinal() for each in rows if each["day"])
    assert {day: int(sums[0]) for day, sums in found.by_day.items()} == by_day
    day = next(iter(by_day))
    assert found.by_day[day][1 + 2] == sum(
        slugs[2] in labels
        for labels, each in zip(named, rows, strict=True)
        if each["day"] and each["day"].toordinal() == day
    )


def test_a_confidence_that_is_no_number_is_none(tmp_path: Path) -> None:
    values = [0.001, 0.999, float("nan"), None, float("nan")]
    rows = [row(at, [], confidence=each, probability=float("nan")) for at, each in enumerate(values)]
    found = count(side(tmp_path / "run", rows).dataset(PATHWAY.name), LabelSet.of(PATHWAY), None)
    assert {name: (bars.sum(), bars[0], bars[99]) for name, bars in found.histograms.items()} == {
        "confidence": (2, 1, 1)
    }


def test_rows_are_joined_by_id(tmp_path: Path) -> None:
    """In another order, with posts that the other side has not, and with an id that comes twice."""
    rows = random_rows(500, 2)
    others = [dict(each, labels=[PATHWAY.answerable[0]] if at % 7 == 0 and each["labels"] else each["labels"])
              for at, each in enumerate(rows[60:])]  # fmt: skip
    others += [row(900 + at, []) for at in range(40)] + [row(950, []), row(950, [])]
    random.Random(3).shuffle(others)
    buckets = []
    for name, each in (("a", rows), ("b", others)):
        buckets.append(Buckets(tmp_path / f"{name}-buckets"))
        count(side(tmp_path / name, each).dataset(PATHWAY.name), LabelSet.of(PATHWAY), None, buckets=buckets[-1])
        buckets[-1].close()
    width = len(PATHWAY.labels)
    joined = join(*buckets, width, width)
    mine, theirs = ({each["post_id"]: each for each in side_rows} for side_rows in (rows, others))
    shared = mine.keys() & theirs.keys()
    assert (joined.num_rows, joined.num_alone) == (440, (60, 40))

    def labels(each: Row) -> set[str] | None:
        return None if each["labels"] is None else {*each["labels"], *(each["parents"] or ())}

    assert joined.num_same == sum(labels(mine[each]) == labels(theirs[each]) for each in shared)
    slugs = [label.slug for label in PATHWAY.labels]
    first = slugs.index(PATHWAY.answerable[0])
    for other in (first, 7):
        assert joined.both[first, other] == sum(
            slugs[first] in (mine[each]["labels"] or ()) and slugs[other] in (labels(theirs[each]) or ())
            for each in shared
        )
    assert joined.here[first] == sum(slugs[first] in (mine[each]["labels"] or ()) for each in shared)


@pytest.mark.parametrize("num_rows", [0, 1, 2])
def test_runs_of_hardly_any_rows_are_joined_too(tmp_path: Path, num_rows: int) -> None:
    """Most buckets are empty then."""
    buckets = [Buckets(tmp_path / name) for name in ("a", "b")]
    for each in buckets:
        each.add(
            hash_texts(pa.array([f"p{number}" for number in range(num_rows)], pa.string())), np.ones(num_rows, int)
        )
        each.close()
    joined = join(*buckets, 1, 1)
    assert (joined.num_rows, joined.num_same, joined.both.tolist()) == (num_rows, num_rows, [[num_rows]])


def test_equal_texts_alone_have_equal_hashes() -> None:
    texts = ["", "a", "ab", "ba", "帖子", "帖子 ", *(str(number) for number in range(20_000))]
    column = pa.array(texts, pa.string())
    hashes = hash_texts(column)
    assert len(np.unique(hashes)) == len(texts)
    assert (hash_texts(column.slice(3)) == hashes[3:]).all()
    assert (hash_texts(column.cast(pa.large_string())) == hashes).all()
    shares = np.bincount((hashes >> np.uint64(58)).astype(int), minlength=64) / len(texts)
    assert shares.max() < 2 / 64, "buckets are about equal"


def test_examples_are_drawn_once_each_and_only_where_asked_for(tmp_path: Path) -> None:
    rows = [row(number, ["daily_life"], text=f"text {number}") for number in range(200)] + [row(200, None, text="no")]
    write_run(tmp_path / "run", {PATHWAY.name: rows}, keep_text=True)
    dataset = Side(Run(str(tmp_path / "run"), "run", {"fingerprint": {}}, None), None, "run").dataset(PATHWAY.name)
    drawn = count(dataset, LabelSet.of(PATHWAY), None, num_examples=10, seed=1).examples
    texts = [each["text"] for each in drawn]
    assert len(set(texts)) == 10
    assert "no" not in texts
    assert max(int(text.split()[1]) for text in texts) > 60, "from the whole run"
    assert count(dataset, LabelSet.of(PATHWAY), None).examples == []


def test_a_day_may_be_the_name_of_a_folder(tmp_path: Path) -> None:
    """`output.partition_by`: the column is not in the files."""
    for day in ("2025-01-05", "2025-02-01", "__HIVE_DEFAULT_PARTITION__"):
        rows = [row(number, ["daily_life"]) for number in range(3)]
        write_run(tmp_path / day, {PATHWAY.name: rows})
        target = tmp_path / "run" / "data" / f"task={PATHWAY.name}" / f"created_at={day}" / "part-00000.parquet"
        target.parent.mkdir(parents=True)
        (tmp_path / day / "data" / f"task={PATHWAY.name}" / "part-00000.parquet").rename(target)
    run = Run(str(tmp_path / "run"), "run", {"fingerprint": {"partition_by": ["created_at"]}}, None)
    found = count(Side(run, None, "run").dataset(PATHWAY.name), LabelSet.of(PATHWAY), "created_at")
    assert found.num_rows == 9
    assert sorted(int(sums[0]) for sums in found.by_day.values()) == [3, 3]
    assert datetime(2025, 2, 1).toordinal() in found.by_day
