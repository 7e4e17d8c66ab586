"""What a run will take, from a sample that the real engines score; and, when it is over, how wrong that was.

    _run/estimate.json                  the last estimate, replaced by the next one
    _run/tmp/estimate-<token>/          the sample's own run, with plan, lease and commits; gone at the end

Nothing else of the run is touched, and nothing of the sample is ever a result.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from mentalglm import storage
from mentalglm.config import OutputConfig, ScoreConfig
from mentalglm.corpus import CorpusPlan, CorruptShardError, ShardReader
from mentalglm.errors import ConfigError, InputError
from mentalglm.scoring.forecast.meter import NUM_SLICES, Rate, SampledShard, SampleScorer, average_rate, read_sampled
from mentalglm.scoring.forecast.sample import (
    Sample,
    average,
    draw_sample,
    sample_size,
    share_interval,
    t_value,
)
from mentalglm.scoring.job import Job, reading
from mentalglm.scoring.order import num_slots
from mentalglm.scoring.predictions import INPUT_STATUSES
from mentalglm.scoring.run.commit import Totals
from mentalglm.scoring.run.lease import LeasedRunError, read_lease
from mentalglm.scoring.run.ledger import Ledger, read_record, run_id
from mentalglm.scoring.scratch import score_picked, scratch_folder


class Figure(BaseModel):
    """A predicted number and its 95 % interval. The interval is of the sampling: of what rows and seconds vary by."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Figure":
        """In another unit."""
        return Figure(value=self.value * factor, low=self.low * factor, high=self.high * factor)


class Estimate(BaseModel):
    """What the whole run will take, without what `dedup` saves."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    """Of the run that it is about."""
    made_at: str
    engine: dict[str, Any]
    """The engines as configured: other ones are another speed."""
    engines: list[dict[str, str]]
    """What answered."""
    num_engines: int
    num_gpus: float
    """Of one engine."""
    num_rows: int
    """Rows of the input that are to be scored, `num_questions` times: each task, of each adapter."""
    num_questions: int
    num_sampled_rows: int
    num_sampled_shards: int
    is_saturated: bool
    """Whether the sample filled the engines; else they may be faster."""
    start_s: float
    """Until the first engine was there: Ray, loading the model. Once in a run."""
    posts_per_s: Figure
    """From then on, all engines together."""
    hours: Figure
    """Of the clock, start included."""
    gpu_hours: Figure
    cost: Figure | None
    price_per_gpu_hour: float | None
    num_prompt_tokens: Figure
    num_output_tokens: Figure
    statuses: dict[str, dict[str, Figure]]
    """task -> status -> share of the predictions; `unreadable`: rows of shards that cannot be read."""
    notes: list[str]
    """What to know about these numbers."""


class Check(BaseModel):
    """A prediction and what came of it."""

    model_config = ConfigDict(frozen=True)

    predicted: Figure
    actual: float
    error: float
    """Predicted over actual, minus 1: 0.1 is ten per cent too much."""
    is_inside: bool
    """Whether the actual number lay in the interval."""


class Accuracy(BaseModel):
    """How wrong the estimate of a finished run was."""

    model_config = ConfigDict(frozen=True)

    made_at: str
    num_sampled_rows: int
    figures: dict[str, Check]
    """Field of `Estimate` -> its check; those alone that are known and comparable."""
    notes: list[str]
    """Why others are not."""


@dataclass(slots=True)
class Attempt:
    """What one job scores of a run, and when; s, this process' clock."""

    num_rows: int
    """Rows that were not committed before it."""
    begun: float = field(default_factory=time.monotonic)
    ready: float | None = None
    """When the first engine was there."""
    ended: float = math.nan

    def start(self) -> None:
        """An engine is there."""
        self.ready = time.monotonic()

    def end(self) -> None:
        """The last row is committed."""
        self.ended = time.monotonic()


def estimate(config: ScoreConfig, *, num_rows: int | None = None, price_per_gpu_hour: float | None = None) -> Estimate:
    """Scores a sample of the input on the configured engines, predicts what a run takes, and keeps that in its folder.

    `num_rows`: of the sample; default: as many as `sample_size` says. The same input gives the same sample.
    Raises: ConfigError, also for a run that is finished; InputError; LeasedRunError while a job works on the run;
    InterruptedRunError.
    """
    job = Job.resolve(config)
    ledger = Ledger(job.config.output.uri)
    plan = job.plan_for(ledger)
    _check_is_free(ledger)
    sample, rows_per_draw = _draw(job, plan, num_rows)
    with scratch_folder(ledger.staging, "estimate") as uri:
        measured = _measure(job, plan, sample, rows_per_draw, uri)
    predicted = _predict(job, plan, sample, measured, price_per_gpu_hour, len(ledger.committed_shards()))
    storage.put(_path(ledger), predicted.model_dump_json(indent=2).encode())
    return predicted


def check_estimate(ledger: Ledger, engine: Mapping[str, Any], totals: Totals, attempt: Attempt) -> Accuracy | None:
    """How wrong the estimate was of the run that `attempt` has ended; None where there is none of this run.

    Tokens are those of all attempts. Time is known of this one alone, so hours are compared where it did everything.
    """
    try:
        made = read_record(Estimate, _path(ledger))
    except InputError:  # damaged, or of another version: no run fails by it
        return None
    if made is None or made.run_id != ledger.record.run_id:
        return None
    actual: dict[str, float] = {name: getattr(totals, name) for name in ("num_prompt_tokens", "num_output_tokens")}
    notes = []
    if totals.num_copied:
        notes.append(
            f"{totals.num_copied} predictions are those of equal texts (dedup), which the sample could not see"
        )
    if made.engine != engine:
        notes.append("posts/s and hours are not compared: the estimate was made for other engine settings")
    elif attempt.ready is None:
        notes.append("posts/s and hours are not compared: earlier attempts had scored everything")
    else:
        share = attempt.num_rows / made.num_rows
        if share > 0.5:  # else filling and draining the engines counts for too much
            actual["posts_per_s"] = attempt.num_rows / max(attempt.ended - attempt.ready, 1e-9)
        if share == 1:
            actual["hours"] = (attempt.ended - attempt.begun) / 3600
        else:
            also = "posts/s is" if share > 0.5 else "nor is posts/s"
            notes.append(f"hours are not compared, since there were several attempts; {also} of the last ({share:.0%})")
    checks = {}
    for name in ("posts_per_s", "hours", "num_prompt_tokens", "num_output_tokens"):
        if true := actual.get(name):
            figure: Figure = getattr(made, name)
            is_inside = figure.low <= true <= figure.high or math.isclose(figure.value, true)
            checks[name] = Check(predicted=figure, actual=true, error=figure.value / true - 1, is_inside=is_inside)
    return Accuracy(made_at=made.made_at, num_sampled_rows=made.num_sampled_rows, figures=checks, notes=notes)


def read_accuracy(ledger: Ledger) -> Accuracy | None:
    """What the manifest of a finished run says of its estimate; None where it says nothing."""
    try:
        found = json.loads(storage.read_bytes(ledger.path("manifest.json")) or b"{}").get("estimate")
        return found and Accuracy.model_validate(found)
    except (ValueError, AttributeError):
        return None


def _path(ledger: Ledger) -> str:
    return ledger.path("_run", "estimate.json")


def _check_is_free(ledger: Ledger) -> None:
    if ledger.is_complete():
        raise ConfigError(
            f"output.uri = {ledger.uri}: this run is finished, and manifest.json says what it took; name another "
            "folder to estimate what a new one would take"
        )
    lease = read_lease(ledger.uri)
    if lease is not None and lease.is_held:
        raise LeasedRunError(
            f"{ledger.uri}: another job works on this run ({lease.describe()}), and both would be slow; wait for it, "
            "or stop it, and run the same command again"
        )


def _draw(job: Job, plan: CorpusPlan, num_rows: int | None) -> tuple[Sample, int]:
    """(the sample, rows of a draw)."""
    num_draws, rows_per_draw = sample_size(
        num_rows,
        num_slots=num_slots(job.config.engine),
        num_engines=min(job.config.engine.num_engines, plan.num_shards),
        num_questions=len(job.questions),
    )
    reader = ShardReader(job.config.input, plan)

    def lengths(shard: int) -> list[int]:
        try:
            return [len(text) for text in reader.read(plan.shard(shard)).texts]
        except CorruptShardError:  # the worker will find the same, and say so
            return [0] * plan.shard(shard).num_rows

    with reading(job.config):
        seed = int(plan.digest[:8], 16)
        return draw_sample(plan.shard_num_rows, num_draws, rows_per_draw, lengths, seed), rows_per_draw


@dataclass(frozen=True, slots=True)
class _Measured:
    """The sample, scored."""

    shards: dict[int, SampledShard | None]
    """None: it cannot be read."""
    totals: Totals
    start_s: float
    scoring_s: float


def _measure(job: Job, plan: CorpusPlan, sample: Sample, rows_per_draw: int, uri: str) -> _Measured:
    """Scores the sample as a run of its own in the folder `uri`."""
    # Shards as small as their part in the sample: so many of them are in flight that they fill the engine.
    shard_rows = job.config.shard_rows if sample.fraction == 1 else rows_per_draw
    changes = {"output": OutputConfig(uri=uri), "dedup": "off", "shard_rows": shard_rows}
    sampled = replace(job, config=job.config.model_copy(update=changes))
    ledger = Ledger(uri)
    rows = {shard: {question.key: each for question in job.questions} for shard, each in sample.by_shard().items()}
    attempt = Attempt(sample.num_rows)
    totals = Totals.of(score_picked(sampled, plan, ledger, rows, scorer=SampleScorer, on_start=attempt.start))
    attempt.end()
    assert attempt.ready is not None
    unreadable = {each.shard for each in totals.unreadable}
    found = {shard: None if shard in unreadable else read_sampled(ledger, shard) for shard in rows}
    return _Measured(found, totals, attempt.ready - attempt.begun, attempt.ended - attempt.ready)


def _predict(
    job: Job, plan: CorpusPlan, sample: Sample, measured: _Measured, price: float | None, num_committed: int
) -> Estimate:
    """From the sample to the whole."""
    tasks = [question.key for question in job.questions]
    averages = _averages(sample, measured, tasks)
    num_engines = min(job.config.engine.num_engines, plan.num_shards)
    shards = [shard for shard in measured.shards.values() if shard is not None]
    rate, num_seen = average_rate(shards, num_slots(job.config.engine))
    scoring_s = _scoring_s(sample, measured, averages["", "work"], rate, plan.num_rows, num_engines)
    hours = Figure(**{name: (measured.start_s + each) / 3600 for name, each in dict(scoring_s).items()})
    num_gpus = max(shard.num_gpus for shard in shards)
    gpu_hours = hours.times(num_gpus * num_engines)
    restarts = measured.totals.num_engine_restarts
    notes = {
        "the sample is the whole input": sample.fraction == 1,
        "the engines were never full for long and may be faster: --rows gives a larger sample": (
            not rate.is_saturated and sample.fraction < 1
        ),
        f"{num_seen} of {num_engines} engines got rows of the sample; the others are taken to be as fast": (
            num_seen < num_engines
        ),
        f"engines died or hung {restarts} times on the sample": restarts > 0,
        f"without what dedup: {job.config.dedup} saves, which a sample cannot see": job.config.dedup != "off",
        f"of the whole input; {num_committed} of {plan.num_shards} shards are scored already": num_committed > 0,
        "echo has no speed of its own: time and posts/s say little": job.config.engine.kind == "echo",
        "no cost, since the engines run on no GPU of the cluster": price is not None and num_gpus == 0,
    }
    return Estimate(
        run_id=run_id(job.fingerprint(plan)),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        engine=job.config.engine.model_dump(mode="json"),
        engines=measured.totals.engines,
        num_engines=num_engines,
        num_gpus=num_gpus,
        num_rows=plan.num_rows,
        num_questions=len(tasks),
        num_sampled_rows=sample.num_rows,
        num_sampled_shards=len(measured.shards),
        is_saturated=rate.is_saturated,
        start_s=measured.start_s,
        posts_per_s=Figure(
            value=plan.num_rows / scoring_s.value,
            low=plan.num_rows / scoring_s.high,
            high=plan.num_rows / scoring_s.low,
        ),
        hours=hours,
        gpu_hours=gpu_hours,
        cost=gpu_hours.times(price) if price is not None and num_gpus else None,
        price_per_gpu_hour=price,
        num_prompt_tokens=_total(averages["", "prompt"], sample, plan.num_rows),
        num_output_tokens=_total(averages["", "output"], sample, plan.num_rows),
        statuses={
            task: {status: _share(each, sample) for (of, status), each in averages.items() if of == task}
            for task in tasks
        },
        notes=[note for note, is_so in notes.items() if is_so],
    )


def _averages(sample: Sample, measured: _Measured, tasks: Sequence[str]) -> dict[tuple[str, str], tuple[float, float]]:
    """(average over the rows of the corpus, its standard error) of: (task, status) -> predictions;
    ("", "prompt" or "output") -> tokens; ("", "work") -> output tokens as an engine's rate counts them."""
    draws = [_count(draw.rows, measured.shards[draw.shard], tasks) for draw in sample.draws]
    names = sorted({name for counts in draws for name in counts})
    values = [
        [counts[name] / len(draw.rows) for name in names] for counts, draw in zip(draws, sample.draws, strict=True)
    ]
    weights = np.array([draw.weight for draw in sample.draws])
    means, errors = average(np.array(values), weights, sample.fraction)
    return dict(zip(names, zip(means.tolist(), errors.tolist(), strict=True), strict=True))


def _count(rows: Sequence[int], shard: SampledShard | None, tasks: Sequence[str]) -> Counter[tuple[str, str]]:
    counts = Counter({("", "prompt"): 0, ("", "output"): 0, ("", "work"): 0})
    for task in tasks:
        if shard is None:
            counts[task, "unreadable"] += len(rows)
            continue
        for row in rows:
            status, num_prompt_tokens, num_output_tokens = shard.rows[task][row]
            counts[task, status] += 1
            counts["", "prompt"] += num_prompt_tokens
            counts["", "output"] += num_output_tokens
            counts["", "work"] += max(1, num_output_tokens) if status not in INPUT_STATUSES else 0
    return counts


def _scoring_s(
    sample: Sample, measured: _Measured, work: tuple[float, float], rate: Rate, num_rows: int, num_engines: int
) -> Figure:
    """Seconds from the first engine's start to the last row."""
    mean, error = work
    if not mean:
        is_all = sample.fraction == 1
        fix = "all its texts are empty or unusable" if is_all else "give --rows a larger number"
        raise InputError(f"input.uri: the sample holds no row to ask about; {fix}")
    per_s = rate.per_s * num_engines
    full_s = num_rows * mean / per_s
    # Beginning and end, when the engines are not full: once in a run, as in the sample.
    work_done = sum(each[2] for shard in measured.shards.values() if shard is not None for each in shard.answers)
    overhead_s = max(0.0, measured.scoring_s - work_done / per_s)
    t = t_value(NUM_SLICES)
    if sample.fraction < 1:
        t = max(t_value(len(sample.draws)), t)
    factor = math.exp(t * math.hypot(error / mean, rate.error / rate.per_s))
    return Figure(value=overhead_s + full_s, low=overhead_s + full_s / factor, high=overhead_s + full_s * factor)


def _total(tokens: tuple[float, float], sample: Sample, num_rows: int) -> Figure:
    mean, error = tokens
    half = t_value(len(sample.draws)) * error
    return Figure(value=mean, low=max(0.0, mean - half), high=mean + half).times(num_rows)


def _share(share: tuple[float, float], sample: Sample) -> Figure:
    mean, error = share
    if sample.fraction == 1:
        return Figure(value=mean, low=mean, high=mean)
    low, high = share_interval(mean, error, sample.num_rows, len(sample.draws))
    return Figure(value=mean, low=low, high=high)
