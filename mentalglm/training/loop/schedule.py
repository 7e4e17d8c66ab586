"""The learning rate as a function of the step."""

import math

from mentalglm.config.train import OptimizerConfig


def num_warmup_steps(config: OptimizerConfig, num_steps: int) -> int:
    """Of `num_steps`; at least one where its ratio is not 0 (transformers rounds up likewise)."""
    return math.ceil(config.warmup_ratio * num_steps)


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Of a step, counted from 0, of `num_steps`: linear growth over the warm-up, then as `schedule` says, to 0 after
    the last step."""
    num_growing = num_warmup_steps(config, num_steps)
    if step < num_growing:
        return config.learning_rate * (step + 1) / num_growing
    progress = (step - num_growing) / max(num_steps - num_growing, 1)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "linear":
        return config.learning_rate * (1 - progress)
    return config.learning_rate
