"""The steps of a stage and what happens at which."""

from dataclasses import dataclass

from mentalglm.config import TrainConfig
from mentalglm.training.loop.sampler import Sampler


@dataclass(frozen=True, slots=True)
class Timeline:
    """When a stage is over, when it is saved and when validated; all in optimizer steps."""

    steps_per_epoch: int
    num_steps: int
    validate_every: int
    save_every: int

    @classmethod
    def of(cls, config: TrainConfig, stage: str, sampler: Sampler) -> "Timeline":
        """Of a stage whose batches are the sampler's."""
        num_steps = config.stages[stage].num_epochs * sampler.num_steps
        num_steps = min(num_steps, config.stages[stage].max_steps or num_steps)
        validate_every = config.selection.every_steps or config.selection.every_epochs * sampler.num_steps
        return cls(sampler.num_steps, num_steps, validate_every, config.checkpoints.every_steps)

    def is_candidate(self, step: int) -> bool:
        """Whether the model is validated after so many steps."""
        return step == self.num_steps or step % self.validate_every == 0

    def is_saved(self, step: int) -> bool:
        """Whether there is a checkpoint after so many steps."""
        return self.is_candidate(step) or step % self.save_every == 0
