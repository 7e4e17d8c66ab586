"""What a dry run tells of a stage is what the stage would do."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mentalglm.config import TrainConfig
from mentalglm.training.loop.sampler import Sampler
from mentalglm.training.pipeline import encode, prepare, resolve_stages
from mentalglm.training.plan import StagePlan, plan
from mentalglm.training.summary import print_plan
from tests.training_jobs import write_model, write_records


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """90 records of two tasks, a part of them held out, in batches of 32."""
    folder = tmp_path_factory.mktemp("plan")
    records = write_records(folder / "records.jsonl", 90)
    return {
        "output": {"uri": str(folder / "out")},
        "model": {"path": str(write_model(folder / "model"))},
        "stages": {"s1": {"train": [{"uri": str(records), "id_column": "id"}]}},
    }


def planned(job: dict[str, Any], **changes: Any) -> StagePlan:
    [found] = plan(TrainConfig.model_validate(job | changes))
    return found


@pytest.mark.parametrize(("weight", "max_steps"), [(1.0, None), (0.7, None), (2.3, 11)])
def test_its_tokens_are_those_of_the_batches(job: dict[str, Any], weight: float, max_steps: int | None) -> None:
    [source] = job["stages"]["s1"]["train"]
    stages = {"s1": {"train": [source | {"weight": weight}], "num_epochs": 4, "max_steps": max_steps}}
    found = planned(job, stages=stages)
    [stage] = resolve_stages(TrainConfig.model_validate(job | {"stages": stages}))
    examples = encode(stage, prepare(stage))
    sampler = Sampler(examples.sources, [weight], batch_size=32, seed=42)
    assert found.timeline.num_steps == (max_steps or 4 * sampler.num_steps)
    batches = np.concatenate([sampler.batch(step) for step in range(found.timeline.num_steps)])
    assert len(batches) < 32 * found.timeline.num_steps, "the last batch of an epoch is not full"
    assert found.num_tokens == examples.lengths[batches].sum()
    if weight == 1:
        assert found.num_tokens == 4 * (found.counts["num_prompt_tokens"] + found.counts["num_answer_tokens"])


def test_a_task_that_weighs_twice_is_seen_twice_as_often(job: dict[str, Any]) -> None:
    [source] = job["stages"]["s1"]["train"]
    stages = {"s1": {"train": [source | {"task_weights": {"suicide_risk": 2}}], "num_epochs": 1}}
    found = planned(job, stages=stages)
    [stage] = resolve_stages(TrainConfig.model_validate(job | {"stages": stages}))
    records = prepare(stage)
    lengths = encode(stage, records).lengths
    times = [2 if record.task.name == "suicide_risk" else 1 for record in records.train.rows]
    assert found.num_tokens == sum(lengths * times)


def test_workers_share_a_model_with_fsdp_alone(job: dict[str, Any]) -> None:
    whole = planned(job, workers={"num_workers": [2, 4]}).memory
    assert planned(job).memory == whole
    shared = planned(job, workers={"num_workers": [2, 4], "strategy": "fsdp"}).memory
    assert (2 * shared.weights, 2 * shared.trained) == (whole.weights, whole.trained)
    assert (shared.activations, shared.logits) == (whole.activations, whole.logits)


def test_it_tells_how_many_records_have_an_explanation(
    job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [source] = job["stages"]["s1"]["train"]
    rows = [json.loads(line) for line in Path(source["uri"]).read_text(encoding="utf-8").splitlines()]
    for row in rows[10:]:
        del row["explanation"]
    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, rows)))
    few = {"uri": str(tmp_path / "few.jsonl"), "id_column": "id"}
    found = planned(job, stages={"s1": {"train": [few], "validation": [source]}})
    print_plan([found])
    assert "90 to learn, 10 of them with an explanation; 90 to validate" in capsys.readouterr().out
