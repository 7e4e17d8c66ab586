"""Config of a bench job: how fast is the score job, against what it is built on."""

from typing import Literal

from pydantic import Field

from mentalglm.config.base import ConfigModel
from mentalglm.config.score import ScoreConfig


class BenchConfig(ConfigModel):
    """Times the score job against bare vLLM and against Ray Data's own LLM stage, interleaved in one run."""

    score: ScoreConfig
    """The job to time, with the vllm engine; its input is scored once in each repeat."""
    output: str = "runs/bench"
    """Folder for the runs and for `bench.json`."""
    contestants: list[Literal["job", "bare", "ray_data_llm"]] = ["job", "bare", "ray_data_llm"]
    """job: the score job · bare: AsyncLLM alone, every request queued at once, same token ids ·
    ray_data_llm: the engine stage of `ray.data.llm`, same token ids, its other stages off."""
    num_repeats: int = Field(default=3, ge=1)
