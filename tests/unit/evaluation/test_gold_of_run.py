"""The labels of a run in the place of gold labels."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm.config import EvalConfig
from mentalglm.errors import ConfigError, InputError
from mentalglm.evaluation.job import evaluate_run
from tests.reviews import RUNS, write_demo_runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs of 20 posts; the second one has failed on the first post and does not explain the next three."""
    write_demo_runs(tmp_path, 20)
    path = tmp_path / RUNS[1] / "data" / "task=suicide_risk" / "part-0.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0] |= {"status": "truncated", "labels": None, "explanation": None}
    for row, nothing in zip(rows[1:4], (None, "", " \n"), strict=True):
        row["explanation"] = nothing
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    return tmp_path


def config(folder: Path, gold: Any, **changes: Any) -> EvalConfig:
    data = {
        "task": "suicide_risk",
        "predictions": str(folder / RUNS[0]),
        "gold": {"uri": str(folder / gold)} if isinstance(gold, str) else gold,
        "output": {"uri": str(folder / "out")},
        "extra_predictions": "ignore",
        "num_bootstrap": 0,
    }
    return EvalConfig.model_validate(data | changes)


@pytest.mark.parametrize(("only_explained", "num_rows"), [(False, 19), (True, 16)])
def test_its_rows_that_are_ok_are_what_others_are_held_against(
    folder: Path, only_explained: bool, num_rows: int
) -> None:
    gold = {"uri": str(folder / RUNS[1]), "only_explained": only_explained}
    metrics = evaluate_run(config(folder, gold))
    assert (metrics["n"], metrics["accuracy"], metrics["num_without_gold"]) == (num_rows, 1, 20 - num_rows)
    told = metrics["provenance"]["gold"]
    assert (told["run"]["run_id"], told["num_left_out"]) == (f"{RUNS[1]}-1", 20 - num_rows)


def test_what_is_no_finished_run_is_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "unfinished" / "_run").mkdir(parents=True)
    (folder / "unfinished" / "_run" / "run.json").touch()
    (folder / "other").mkdir()
    pq.write_table(pa.table({"id": ["1"]}), folder / "other" / "part.parquet")
    for place, message in (
        ("empty", "no Parquet there"),
        ("unfinished", "is not finished"),
        ("other", "have no column post_id, status, labels"),
        ("nowhere", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_run(config(folder, place))
    path = folder / RUNS[1] / "data" / "task=suicide_risk" / "part-0.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop(["explanation"]), path)
    with pytest.raises(InputError, match="have no column explanation"):
        evaluate_run(config(folder, {"uri": str(folder / RUNS[1]), "only_explained": True}))
    with pytest.raises(ConfigError, match="has no adapters"):
        evaluate_run(config(folder, {"uri": str(folder / RUNS[1]), "adapter": "s1"}))
    pq.write_table(pa.concat_tables([table, table.slice(5, 1)]), path)
    with pytest.raises(InputError, match="1 ids come twice"):
        evaluate_run(config(folder, RUNS[1]))


def test_a_folder_of_several_tasks_or_adapters_is_told_from_ids_that_come_twice(folder: Path) -> None:
    data = folder / RUNS[1] / "data"
    words = r"data: holds those of task=cognitive_distortion, .*task=suicide_risk; name the run's folder"
    with pytest.raises(InputError, match=words):
        evaluate_run(config(folder, RUNS[0], predictions=str(data)))
    one = data / "task=suicide_risk"
    assert evaluate_run(config(folder, RUNS[0], predictions=str(one)))["n"] == 20
    for name in ("s1", "s2"):
        (one / f"adapter={name}").mkdir()
        shutil.copy(one / "part-0.parquet", one / f"adapter={name}")
    (one / "part-0.parquet").unlink()
    with pytest.raises(InputError, match=r"task=suicide_risk/adapter=s1, task=suicide_risk/adapter=s2; name the run's"):
        evaluate_run(config(folder, RUNS[0], predictions=str(one)))
