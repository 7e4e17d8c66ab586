"""Config of a bench job: how fast is the score job, against what it is built on."""

from typing import Literal

from pydantic import Field

from mentalglm.config.base import ConfigModel
from mentalglm.config.score import ScoreConfig


class BenchConfig(ConfigModel):
    """Times the score job against vLLM alone and against Ray Data's own LLM stage, interleaved in one run."""

    score: ScoreConfig
    """The job to time; its input is scored once in each repeat."""
    output: str = "runs/bench"
    """Folder for the runs and for `bench.json`."""
    contestants: list[Literal["job", "bare", "bare_without_logprobs", "ray_data_llm"]] = ["job", "bare", "ray_data_llm"]
    """job: the score job · bare: AsyncLLM alone, the job's requests all queued at once · bare_without_logprobs: the
    same without what confidence costs · ray_data_llm: the engine stage of `ray.data.llm`, same token ids, its other
    stages off. An engine other than vllm has the job alone."""
    num_repeats: int = Field(default=3, ge=1)
