"""The two GLM formats under real vLLM: its own chatglm, its Transformers backend for glm, and our reading of both."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mentalglm.config import GenerationConfig, ModelConfig, VllmEngineConfig
from mentalglm.corpus.synthetic import generate_posts
from mentalglm.engine.model import resolve_model
from mentalglm.engine.protocol import Completion, Request
from mentalglm.engine.vllm import VllmEngine
from mentalglm.tasks import load_task, render_prompt
from mentalglm.training.export import export_merged
from mentalglm.training.glm_format import convert_format
from tests.chatglm import chatglm_logits, save_chatglm, save_chatglm_adapter

pytestmark = pytest.mark.slow

TASK = load_task("suicide_risk")
PROMPTS = [render_prompt(TASK, post.text) for post in generate_posts(6, seed=9)]
NUM_TOKENS = 12
TOLERANCE = 1e-4
"""Of a log-probability, in nats, in float32: of one token, or on average over an answer."""


def answers(model: Path, adapters: Mapping[str, Path | None]) -> dict[str, list[tuple[list[int], Completion]]]:
    """Prompt ids and greedy answer to each prompt, under vLLM in float32, for each adapter."""
    folders = {name: None if folder is None else str(folder) for name, folder in adapters.items()}
    resolved = resolve_model(ModelConfig(path=str(model), adapters=folders))
    config = VllmEngineConfig(max_num_seqs=32, dtype="float32")
    generation = GenerationConfig(max_tokens=NUM_TOKENS, max_prompt_tokens=500)
    names = [name for name in resolved.adapters]

    async def run() -> list[Completion]:
        engine = await asyncio.to_thread(VllmEngine, config, generation, resolved, num_gpus=0)
        try:
            encoded.extend(engine.encode(PROMPTS))
            pairs = [
                (Request(TASK.name, prompt, name), ids)
                for name in names
                for prompt, ids in zip(PROMPTS, encoded, strict=True)
            ]
            return await asyncio.gather(*(engine.generate(*pair) for pair in pairs))
        finally:
            await engine.close()

    encoded: list[Any] = []
    found = asyncio.run(run())
    return {
        str(name): [
            (each.token_ids, found[number * len(PROMPTS) + row]) for row, each in enumerate(encoded)
        ]
        for number, name in enumerate(names)
    }


def test_both_formats_answer_alike_under_vllm_and_as_transformers_and_peft_do(tmp_path: Path) -> None:
    published = save_chatglm(tmp_path / "published", seed=2)
    convert_format(str(published), tmp_path / "glm", "glm")
    convert_format(str(tmp_path / "glm"), tmp_path / "chatglm", "chatglm")  # with a tokenizer that needs no code
    fused = save_chatglm_adapter(tmp_path / "fused", published, std=0.5, use_rslora=True, rank_pattern={"dense": 6})
    convert_format(str(fused), tmp_path / "native", "glm")
    adapter = str(tmp_path / "native")
    export_merged(resolve_model(ModelConfig(path=str(tmp_path / "glm"), adapter=adapter, merge=True)), tmp_path / "m")
    own = answers(tmp_path / "chatglm", {"base": None, "adapter": fused})
    native = answers(tmp_path / "glm", {"base": None, "adapter": tmp_path / "native"})
    merged = answers(tmp_path / "m", {})["None"]

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "glm").eval()
    references = {"base": base, "adapter": PeftModel.from_pretrained(base, tmp_path / "native").eval()}
    assert [one.text for _, one in own["base"]] != [one.text for _, one in own["adapter"]]
    for name in ("adapter", "base"):
        for row, (prompt_ids, completion) in enumerate(own[name]):
            several = [native[name][row][1], *([merged[row][1]] if name == "adapter" else [])]
            for other in several:
                assert other.text == completion.text
                assert other.head_logprob == pytest.approx(completion.head_logprob, abs=NUM_TOKENS * TOLERANCE)
            assert prompt_ids == native[name][row][0] == merged[row][0]
