"""How fast the training loop is: the job against the same steps in a bare torch loop and against transformers' Trainer.

    python -m mentalglm.measure.training

Each contestant is a process of its own, with the same threads, model, records and batch size; they take turns. Tokens
are counted without padding. The bare loop takes the job's own micro-batches, so what it is faster by is what Ray Train,
checkpoints and logs cost. The Trainer makes its batches its own way.

One core is left free by default (`--threads`). Ray's processes take about 0.1 of a core even when idle, and where
threads have all cores, OpenMP's barriers make every one of them wait for the one that was interrupted. On 2 cores that
is the whole difference to the bare loop: job / bare was 0.84 to 0.91 with 2 threads, 0.98 to 1.05 with 1 (2026-11-26).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mentalglm.config import TrainConfig
from mentalglm.corpus.synthetic import TASKS, generate_posts
from mentalglm.engine.model import DEMO_MODEL
from mentalglm.training.loop.sampler import Sampler, micro_batches
from mentalglm.training.loop.schedule import learning_rate
from mentalglm.training.metrics_log import read_metrics
from mentalglm.training.models.language_model import LanguageModel, collate
from mentalglm.training.pipeline import encode, prepare, resolve_stages, train

Contestant = Literal["job", "bare", "trainer"]
CONTESTANTS: tuple[Contestant, ...] = ("job", "bare", "trainer")
STAGE = "bench"
_NUM_WARM_STEPS = 10
"""Left out of the steady rate."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One turn of a contestant."""

    tokens_per_s: float
    """Steady: after the first steps, saves included."""
    start_s: float
    """From the start of the process until its first step began."""
    process_s: float
    """The whole process, from its start to its end."""
    loss: float
    """Of the last steps, in nats for each learned token."""
    save_s: float = 0.0
    """What a checkpoint held training up for, mean; 0 where none was written."""


def bench(num_steps: int, num_repeats: int, num_threads: int) -> dict[Contestant, list[Figures]]:
    """Turns of all contestants, interleaved."""
    found: dict[Contestant, list[Figures]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="mentalglm-bench-") as folder:
        records = Path(folder) / "records.jsonl"
        write_records(records)
        for turn in range(num_repeats):
            for name in CONTESTANTS:
                output = Path(folder) / f"{name}-{turn}"
                command = [sys.executable, "-m", __spec__.name, "--contestant", name, "--records", str(records)]
                command += ["--output", str(output), "--steps", str(num_steps), "--threads", str(num_threads)]
                started = time.time()
                environment = os.environ | {"OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"}
                result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603
                if result.returncode:
                    raise RuntimeError(f"{name}: {result.stderr[-2000:]}")
                measured = json.loads(result.stdout.strip().splitlines()[-1])
                start_s, process_s = measured.pop("began") - started, time.time() - started
                found[name].append(Figures(start_s=start_s, process_s=process_s, **measured))
    return found


def write_records(path: Path, count: int = 600) -> None:
    """JSONL of synthetic posts, each with one task and its answer."""
    with path.open("w", encoding="utf-8") as file:
        for number, post in enumerate(generate_posts(count, seed=11)):
            task = TASKS[number % len(TASKS)]
            row = {"task": task, "text": post.text, "labels": list(post.labels[task])}
            row["explanation"] = post.explanations[task]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def bench_config(records: Path, output: Path, num_steps: int, num_threads: int, **changes: Any) -> TrainConfig:
    """A stage of LoRA on the demo model, in float32, validated once at its end, without a model."""
    data: dict[str, Any] = {
        "output": {"uri": str(output)},
        "model": {"path": str(DEMO_MODEL)},
        "stages": {STAGE: {"train": [{"uri": str(records)}], "num_epochs": 100, "max_steps": num_steps}},
        "dtype": "float32",
        "selection": {"engine": {"kind": "echo"}, "every_steps": num_steps},
        "checkpoints": {"every_steps": max(num_steps // 4, 1)},
        "workers": {"num_cpus": num_threads},
    }
    return TrainConfig.model_validate(data | changes)


def _run_job(config: TrainConfig) -> dict[str, float]:
    [record] = train(config)
    lines = read_metrics(f"{config.output.uri}/{record.name}")
    first, steady = lines[0], lines[1:]
    saves = [line["save_s"] for line in lines if line["save_s"]]
    return {
        "tokens_per_s": sum(line["num_tokens"] for line in steady) / (steady[-1]["elapsed_s"] - first["elapsed_s"]),
        "began": first["time"] - first["elapsed_s"],
        "loss": lines[-1]["loss"],
        "save_s": statistics.mean(saves) if saves else 0.0,
    }


def _run_bare(config: TrainConfig) -> dict[str, float]:
    [stage] = resolve_stages(config)
    examples = encode(stage, prepare(stage))
    sampler = Sampler(examples.sources, [1.0], batch_size=config.batch_size, seed=config.seed)
    model = LanguageModel.load(config, Path(stage.model.path), None)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    num_steps = config.stages[STAGE].max_steps or 0
    lengths, num_learned = examples.lengths, examples.num_learned
    started, num_tokens, losses = 0.0, 0, []
    began = time.time()
    for step in range(num_steps):
        if step == _NUM_WARM_STEPS:
            started, num_tokens = time.perf_counter(), 0
        batch = sampler.batch(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step, num_steps)
        [mine] = micro_batches(batch, lengths, num_workers=1, micro_batch_size=config.micro_batch_size)
        total, scale = 0.0, float(num_learned[batch].sum())
        for indices in mine:
            loss = model(*collate([examples[int(index)] for index in indices])) / scale
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_tokens += int(lengths[batch].sum())
        losses.append(total)
    rate = num_tokens / (time.perf_counter() - started)
    return {"tokens_per_s": rate, "began": began, "loss": statistics.mean(losses[-10:])}


def _run_trainer(config: TrainConfig) -> dict[str, float]:
    from mentalglm.measure.hf_trainer import run_trainer

    [stage] = resolve_stages(config)
    examples = encode(stage, prepare(stage))
    model = LanguageModel.load(config, Path(stage.model.path), None).model
    num_steps = config.stages[STAGE].max_steps or 0
    clock, loss = run_trainer(config, model, examples, num_steps, _NUM_WARM_STEPS)
    # Its rows are drawn at random, so a step has the mean number of tokens; the last batch of an epoch is smaller.
    steps_per_epoch = -(-len(examples) // config.batch_size)
    num_tokens = float(examples.lengths.sum()) / steps_per_epoch * (num_steps - _NUM_WARM_STEPS)
    return {"tokens_per_s": num_tokens / (clock.ended - clock.warm), "began": clock.began, "loss": loss}


def free_threads() -> int:
    """One less than this process has cores, and at least 1."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def describe(found: dict[Contestant, list[Figures]]) -> list[str]:
    """Medians, and ratios of turns that were neighbours."""
    lines = []
    for name, turns in found.items():
        rate = statistics.median(turn.tokens_per_s for turn in turns)
        start_s = statistics.median(turn.start_s for turn in turns)
        process_s = statistics.median(turn.process_s for turn in turns)
        loss = statistics.median(turn.loss for turn in turns)
        lines.append(
            f"{name:8} {rate:8.0f} tokens/s   first step after {start_s:5.1f} s   whole process {process_s:5.0f} s   "
            f"last loss {loss:.4f}"
        )
    for other in ("bare", "trainer"):
        ratios = [
            job.tokens_per_s / theirs.tokens_per_s for job, theirs in zip(found["job"], found[other], strict=True)
        ]
        each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        lines.append(f"job / {other}: {statistics.median(ratios):.3f} ({each})")
    stall = statistics.median(turn.save_s for turn in found["job"])
    lines.append(f"a checkpoint holds training up for {1000 * stall:.0f} ms")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m mentalglm.measure.training", description="Speed of training.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=free_threads())
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--records", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.contestant is None:
        print("\n".join(describe(bench(options.steps, options.repeats, options.threads))))
        return
    torch.set_num_threads(options.threads)
    config = bench_config(options.records, options.output, options.steps, options.threads)
    run = {"job": _run_job, "bare": _run_bare, "trainer": _run_trainer}[options.contestant]
    print(json.dumps(run(config)))


if __name__ == "__main__":
    main()
