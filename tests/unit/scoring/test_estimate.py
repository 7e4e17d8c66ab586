"""How wrong an estimate was: what is compared, and what is not because it is not known."""

from pathlib import Path
from typing import Any

import pytest

from mentalglm import storage
from mentalglm.manifest import number, prediction_rows, shown_name
from mentalglm.scoring.forecast.estimate import Attempt, Estimate, Figure, check_estimate
from mentalglm.scoring.run.commit import Totals
from mentalglm.scoring.run.ledger import Ledger, RunRecord

ENGINE = {"kind": "vllm", "num_engines": 2}
TOTALS = Totals(num_prompt_tokens=1_000_000, num_output_tokens=400_000)


def figure(value: float) -> Figure:
    return Figure(value=value, low=0.9 * value, high=1.1 * value)


def made(**changes: Any) -> Estimate:
    values: dict[str, Any] = {
        "run_id": "run",
        "made_at": "2026-11-26T12:00:00+00:00",
        "engine": ENGINE,
        "engines": [],
        "num_engines": 2,
        "num_gpus": 1,
        "num_rows": 1000,
        "num_questions": 1,
        "num_sampled_rows": 500,
        "num_sampled_shards": 40,
        "is_saturated": True,
        "start_s": 60.0,
        "posts_per_s": figure(10),
        "hours": figure(0.05),
        "gpu_hours": figure(0.1),
        "cost": None,
        "price_per_gpu_hour": None,
        "num_prompt_tokens": figure(950_000),
        "num_output_tokens": figure(500_000),
        "statuses": {},
        "notes": [],
    }
    return Estimate.model_validate(values | changes)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(str(tmp_path))
    record = RunRecord(run_id="run", plan="", fingerprint={}, config={})
    storage.put(ledger.path("_run", "run.json"), record.model_dump_json().encode())
    return ledger


def put(ledger: Ledger, estimate: Estimate) -> None:
    storage.put(ledger.path("_run", "estimate.json"), estimate.model_dump_json().encode())


def attempt(num_rows: int) -> Attempt:
    return Attempt(num_rows, begun=100.0, ready=200.0, ended=280.0)


def test_time_and_tokens_of_a_run_in_one_attempt(ledger: Ledger) -> None:
    put(ledger, made())
    found = check_estimate(ledger, ENGINE, TOTALS, attempt(1000))
    assert found is not None
    assert not found.notes
    errors = {name: (check.actual, round(check.error, 3), check.is_inside) for name, check in found.figures.items()}
    assert errors == {
        "posts_per_s": (12.5, -0.2, False),
        "hours": (0.05, 0.0, True),
        "num_prompt_tokens": (1_000_000, -0.05, True),
        "num_output_tokens": (400_000, 0.25, False),
    }
    assert prediction_rows(found.model_dump()["figures"]) == [
        ("posts/s", "10", "9 to 11", "12.5", "-20.0%, outside"),
        ("hours", "0.05", "0.045 to 0.055", "0.05", "+0.0%"),
        ("prompt tokens", "950,000", "855,000 to 1,045,000", "1,000,000", "-5.0%"),
        ("output tokens", "500,000", "450,000 to 550,000", "400,000", "+25.0%, outside"),
    ]


def test_hours_of_several_attempts_are_not_known(ledger: Ledger) -> None:
    put(ledger, made())
    found = check_estimate(ledger, ENGINE, TOTALS, attempt(250))
    assert found is not None
    assert found.figures.keys() == {"num_prompt_tokens", "num_output_tokens"}
    of_the_last = "hours are not compared, since there were several attempts; {} of the last ({})"
    assert found.notes == [of_the_last.format("nor is posts/s", "25%")]
    found = check_estimate(ledger, ENGINE, TOTALS, attempt(750))
    assert found is not None
    assert found.figures["posts_per_s"].actual == 750 / 80
    assert "hours" not in found.figures
    assert found.notes == [of_the_last.format("posts/s is", "75%")]


def test_other_engines_are_another_speed(ledger: Ledger) -> None:
    put(ledger, made())
    found = check_estimate(ledger, ENGINE | {"num_engines": 4}, TOTALS, attempt(1000))
    assert found is not None
    assert found.figures.keys() == {"num_prompt_tokens", "num_output_tokens"}
    assert "other engine settings" in found.notes[0]


def test_copies_are_named(ledger: Ledger) -> None:
    put(ledger, made())
    totals = TOTALS.model_copy(update={"num_copied": 17})
    found = check_estimate(ledger, ENGINE, totals, attempt(1000))
    assert found is not None
    assert found.notes[0].startswith("17 predictions")


def test_an_estimate_of_another_run_says_nothing(ledger: Ledger) -> None:
    assert check_estimate(ledger, ENGINE, TOTALS, attempt(1000)) is None
    put(ledger, made(run_id="another"))
    assert check_estimate(ledger, ENGINE, TOTALS, attempt(1000)) is None


def test_numbers_and_names_as_people_read_them() -> None:
    assert [number(each) for each in (0.0123456, 5, 99.96, 1234567.8)] == ["0.0123", "5", "100", "1,234,568"]
    assert [shown_name(each) for each in ("num_output_tokens", "posts_per_s")] == ["output tokens", "posts/s"]
