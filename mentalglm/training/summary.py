"""What a person is told before and after a train job."""

from collections.abc import Sequence

from mentalglm import storage
from mentalglm.config import TrainConfig
from mentalglm.training.plan import Memory, StagePlan
from mentalglm.training.scores import describe_scores
from mentalglm.training.stage import StageRecord


def print_plan(plans: Sequence[StagePlan]) -> None:
    """Each stage: records, steps, tokens, parameters, memory."""
    for stage in plans:
        counts, timeline = stage.counts, stage.timeline
        done = f"; finished {stage.finished.finished_at}, nothing to do" if stage.finished else ""
        print(f"stage {stage.name}{done}")
        print(
            f"  records      {counts['num_train_records']:,} to learn, {counts['num_explained_records']:,} of them "
            f"with an explanation; {counts['num_validation_records']:,} to validate"
        )
        if counts["num_truncated_posts"]:
            print(f"               {counts['num_truncated_posts']:,} posts are cut to fit max_prompt_tokens")
        if counts["num_validation_texts_in_train"]:
            print(f"               {counts['num_validation_texts_in_train']:,} validation posts are learned from too")
        print(
            f"  steps        {timeline.num_steps:,} ({timeline.steps_per_epoch:,} to an epoch, "
            f"{stage.num_warmup_steps:,} of warm-up); validated every {timeline.validate_every:,}, "
            f"saved every {timeline.save_every:,}"
        )
        print(
            f"  tokens       {stage.num_tokens:,} in all; the records have {counts['num_prompt_tokens']:,} of prompts "
            f"and {counts['num_answer_tokens']:,} of answers"
        )
        print(f"  parameters   {stage.num_trained_parameters:,} trained, {stage.num_parameters:,} of the model")
        print(f"  memory       {describe_memory(stage.memory)}, at least")


def describe_memory(memory: Memory) -> str:
    """Total and parts, in GB."""
    parts = {
        "weights": memory.weights,
        "training state": memory.trained,
        "activations": memory.activations,
        "logits": memory.logits,
    }
    each = ", ".join(f"{name} {value / 1e9:.2g}" for name, value in parts.items())
    return f"{memory.total / 1e9:.2g} GB of each worker ({each})"


def print_summary(config: TrainConfig, records: Sequence[StageRecord]) -> None:
    """Each stage with its best checkpoint and where its product lies."""
    for record in records:
        found = describe_scores(record.best_scores)
        print(f"{record.name}: best after step {record.best_step} of {record.num_steps}: validation {found}")
        print(f"  {storage.join(config.output.uri, record.name, config.product)}")
        for each in record.validations:
            if each["error"] is not None:
                print(f"  validation after step {each['step']} failed: {each['error']}")
