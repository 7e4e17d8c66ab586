"""What the job loses against vLLM alone adds up, and what cannot be compared is refused."""

import pytest

from mentalglm.config import BenchConfig
from mentalglm.errors import ConfigError
from mentalglm.measure.bench import bench, loss_budget

JOB = {
    "num_engines": 2,
    "wall_s": 110.0,
    "wasted_tokens": 0.1,
    "engine_s": {
        "cold_start": 60.0,
        "busy": 120.0,
        "ramp": 4.0,
        "starved": 6.0,
        "recovery": 0.0,
        "tail": 20.0,
        "finish": 10.0,
    },
}


def test_the_loss_budget_adds_up_to_what_is_missing() -> None:
    budget = loss_budget(JOB, num_rows=1000, bare_rate=25.0, wall_s=112.0)
    assert budget == {
        "process": 2.0,
        "cold_start": 30.0,
        "ramp": 2.0,
        "starved": 3.0,
        "recovery": 0.0,
        "tail": 10.0,
        "finish": 5.0,
        "wasted": 6.0,
        "slower": pytest.approx(14.0),
    }
    assert sum(budget.values()) == pytest.approx(112.0 - 1000 / 25.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": {"kind": "echo"}}, "score.engine.kind = echo"),
        ({"explain": "positive"}, "score.explain = positive"),
        ({"dedup": "shard"}, "score.dedup = shard"),
        ({"label_scores": "forced"}, "score.label_scores = forced"),
    ],
)
def test_what_others_would_not_do_is_not_compared(changes: dict[str, object], message: str) -> None:
    score = {"input": {"uri": "posts"}, "output": {"uri": "scored"}, "tasks": ["suicide_risk"], **changes}
    with pytest.raises(ConfigError, match=message):
        bench(BenchConfig.model_validate({"score": score, "contestants": ["job", "bare"]}))
