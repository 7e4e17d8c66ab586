"""The steps of a train job as transformers' Trainer does them, to compare with."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from mentalglm.config import TrainConfig
from mentalglm.training.models.learner import Examples

Row = dict[str, list[int]]


class Rows(Dataset[Row]):
    """Examples as the Trainer wants them: `input_ids`, and as many `labels`, -100 where nothing is learned."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Row:
        example = self._examples[index]
        learned = example.token_ids[example.num_prompt_tokens :]
        return {"input_ids": example.token_ids, "labels": [-100] * example.num_prompt_tokens + learned}


class Clock(TrainerCallback):  # type: ignore[misc]
    """When the first step began, the warm ones ended and the last one ended; s since 1970."""

    def __init__(self, num_warm_steps: int) -> None:
        self._num_warm_steps = num_warm_steps
        self.began = self.warm = self.ended = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        self.began = self.began or time.time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        self.ended = time.time()
        if state.global_step == self._num_warm_steps:
            self.warm = self.ended


def run_trainer(
    config: TrainConfig, model: Any, examples: Examples, num_steps: int, num_warm_steps: int
) -> tuple[Clock, float]:
    """Trains with the settings of the job, in float32 on the CPU. Returns its clock and the last loss."""
    clock = Clock(num_warm_steps)
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
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(examples), data_collator=_pad, callbacks=[clock])
    trainer.train()
    return clock, [line["loss"] for line in trainer.state.log_history if "loss" in line][-1]


def _pad(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    length = max(len(row["input_ids"]) for row in rows)

    def padded(each: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        return torch.tensor([[*values, *[value] * (length - len(values))] for values in each])

    return {
        "input_ids": padded([row["input_ids"] for row in rows], 0),
        "labels": padded([row["labels"] for row in rows], -100),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
    }
