"""How fast the training loop is: the job against the same steps in a bare torch loop and against transformers' Trainer.

    python -m mentalglm.measure.training

Each contestant is a process of its own, with the same threads, model, records and batch size; they take turns. Tokens
are counted without padding. The bare loop takes the job's own micro-batches, so what it is faster by is what Ray Train,
checkpoints and logs cost. The Trainer makes its batches its own way.
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
from mentalglm.training.language_model import LanguageModel, collate
from mentalglm.training.metrics_log import read_metrics
from mentalglm.training.pipeline import encode, prepare, resolve_stages, train
from mentalglm.training.sampler import Sampler, micro_batches
from mentalglm.training.schedule import learning_rate

Contestant = Literal["job", "bare", "trainer"]
CONTESTANTS: tuple[Contestant, ...] = ("job", "bare", "trainer")
_NUM_WARM_STEPS = 10
"""Left out of the steady rate."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One turn of a contestant."""

    tokens_per_s: float
    """Steady: after the first steps, saves included."""
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
        _write_records(records, 600)
        for turn in range(num_repeats):
            for name in CONTESTANTS:
                output = Path(folder) / f"{name}-{turn}"
                command = [sys.executable, "-m", __spec__.name, "--contestant", name, "--records", str(records)]
                command += ["--output", str(output), "--steps", str(num_steps), "--threads", str(num_threads)]
                started = time.perf_counter()
                environment = os.environ | {"OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"}
                result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603
                if result.returncode:
                    raise RuntimeError(f"{name}: {result.stderr[-2000:]}")
                measured = json.loads(result.stdout.strip().splitlines()[-1])
                found[name].append(Figures(process_s=time.perf_counter() - started, **measured))
    return found


def _write_records(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, post in enumerate(generate_posts(count, seed=11)):
            task = TASKS[number % len(TASKS)]
            row = {"task": task, "text": post.text, "labels": list(post.labels[task])}
            row["explanation"] = post.explanations[task]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _config(records: Path, output: Path, num_steps: int, num_threads: int) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "output": {"uri": str(output)},
            "model": {"path": str(DEMO_MODEL)},
            "stages": {"bench": {"train": [{"uri": str(records)}], "num_epochs": 100, "max_steps": num_steps}},
            "dtype": "float32",
            "selection": {"engine": {"kind": "echo"}, "every_steps": num_steps},
            "checkpoints": {"every_steps": max(num_steps // 4, 1)},
            "workers": {"num_cpus": num_threads},
        }
    )


def _run_job(config: TrainConfig) -> dict[str, float]:
    [record] = train(config)
    lines = read_metrics(f"{config.output.uri}/{record.name}")
    first, steady = lines[0], lines[1:]
    saves = [line["save_s"] for line in lines if line["save_s"]]
    return {
        "tokens_per_s": sum(line["num_tokens"] for line in steady) / (steady[-1]["elapsed_s"] - first["elapsed_s"]),
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
    num_steps = config.stages["bench"].max_steps or 0
    lengths, num_learned = examples.lengths, examples.num_learned
    started, num_tokens, losses = 0.0, 0, []
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
    return {"tokens_per_s": num_tokens / (time.perf_counter() - started), "loss": statistics.mean(losses[-10:])}


def _run_trainer(config: TrainConfig) -> dict[str, float]:
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    [stage] = resolve_stages(config)
    examples = encode(stage, prepare(stage))
    model = LanguageModel.load(config, Path(stage.model.path), None).model

    class Rows(Dataset[dict[str, list[int]]]):
        def __len__(self) -> int:
            return len(examples)

        def __getitem__(self, index: int) -> dict[str, list[int]]:
            example = examples[index]
            learned = example.token_ids[example.num_prompt_tokens :]
            labels = [-100] * example.num_prompt_tokens + learned
            return {"input_ids": example.token_ids, "labels": labels}

    def pad(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)

        def padded(key: str, value: int) -> torch.Tensor:
            return torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows])

        mask = [[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows]
        return {
            "input_ids": padded("input_ids", 0),
            "labels": padded("labels", -100),
            "attention_mask": torch.tensor(mask),
        }

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = ended = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == _NUM_WARM_STEPS:
                self.started = time.perf_counter()
            self.ended = time.perf_counter()

    clock = Clock()
    num_steps = config.stages["bench"].max_steps or 0
    arguments = TrainingArguments(
        output_dir=config.output.uri,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.batch_size // config.micro_batch_size,
        max_steps=num_steps,
        learning_rate=1e-4,
        lr_scheduler_type="cosine",
        warmup_steps=0.01,
        weight_decay=0.0,
        logging_steps=10,
        save_steps=max(num_steps // 4, 1),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        optim="adamw_torch_fused",
        seed=config.seed,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(), data_collator=pad, callbacks=[clock])
    trainer.train()
    # Its rows are drawn at random, so a step has the mean number of tokens; the last batch of an epoch is smaller.
    steps_per_epoch = -(-len(examples) // config.batch_size)
    tokens_per_step = float(examples.lengths.sum()) / steps_per_epoch
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {
        "tokens_per_s": tokens_per_step * (num_steps - _NUM_WARM_STEPS) / (clock.ended - clock.started),
        "loss": losses[-1],
    }


def describe(found: dict[Contestant, list[Figures]]) -> list[str]:
    """Medians, and ratios of turns that were neighbours."""
    lines = []
    for name, turns in found.items():
        rate = statistics.median(turn.tokens_per_s for turn in turns)
        process_s = statistics.median(turn.process_s for turn in turns)
        loss = statistics.median(turn.loss for turn in turns)
        lines.append(f"{name:8} {rate:8.0f} tokens/s   whole process {process_s:5.0f} s   last loss {loss:.4f}")
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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--records", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.contestant is None:
        print("\n".join(describe(bench(options.steps, options.repeats, options.threads))))
        return
    torch.set_num_threads(options.threads)
    config = _config(options.records, options.output, options.steps, options.threads)
    run = {"job": _run_job, "bare": _run_bare, "trainer": _run_trainer}[options.contestant]
    print(json.dumps(run(config)))


if __name__ == "__main__":
    main()
