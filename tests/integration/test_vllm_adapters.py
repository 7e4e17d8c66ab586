"""Adapters under real vLLM: each answers as it does under PEFT, all of them in one engine."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mentalglm.config import GenerationConfig, ModelConfig, VllmEngineConfig
from mentalglm.corpus.synthetic import generate_posts
from mentalglm.engine.model import DEMO_MODEL, resolve_model
from mentalglm.engine.protocol import Completion, Request
from mentalglm.engine.vllm import VllmEngine
from mentalglm.errors import ConfigError
from mentalglm.tasks import load_task, render_prompt
from mentalglm.training.demo import generate, load
from tests.adapters import save_adapter

pytestmark = pytest.mark.slow

NUM_POSTS = 16
TASK = load_task("cognitive_distortion")
TEXTS = [post.text for post in generate_posts(NUM_POSTS, seed=5)]
GENERATION = GenerationConfig(max_tokens=40)


async def ask(engine: VllmEngine, requests: list[Request]) -> list[Completion]:
    """All at once, so that a batch has rows of each adapter."""
    encoded = engine.encode([request.prompt for request in requests])
    return await asyncio.gather(*(engine.generate(*each) for each in zip(requests, encoded, strict=True)))  # type: ignore[arg-type]


def test_adapters_answer_as_under_peft_and_one_that_vllm_cannot_load_ends_the_run(tmp_path: Path) -> None:
    tokenizer, base = load(DEMO_MODEL)
    peft: dict[str, Any] = {
        "values": save_adapter(tmp_path / "values", seed=2, modules=["v_proj"], std=0.5),
        # rsLoRA, and a rank of its own for one kind of module
        "all": save_adapter(tmp_path / "all", seed=6, std=0.15, use_rslora=True, rank_pattern={"down_proj": 12}),
        "base": base.float(),
    }
    wanted = {
        name: generate(tokenizer, model, TASK, TEXTS, max_tokens=GENERATION.max_tokens) for name, model in peft.items()
    }
    assert len({tuple(answers) for answers in wanted.values()}) == 3, "the adapters change what the model says"
    folders: dict[str, str | None] = {name: str(tmp_path / name) for name in ("values", "all")}
    model = resolve_model(ModelConfig(adapters={**folders, "base": None}))
    config = VllmEngineConfig(max_num_seqs=64, dtype="float32")
    (tmp_path / "spoilt").mkdir()

    requests = [
        Request(task=TASK.name, prompt=render_prompt(TASK, text), adapter=name) for text in TEXTS for name in wanted
    ]

    async def run() -> None:
        engine = await asyncio.to_thread(VllmEngine, config, GENERATION, model, num_gpus=0)
        try:
            completions = await ask(engine, requests)
            for number, (name, answers) in enumerate(wanted.items()):
                # The padding that `generate` needs may change the last bit, and so, rarely, a word.
                texts = [each.text for each in completions[number :: len(wanted)]]
                assert sum(map(str.__eq__, texts, answers)) >= NUM_POSTS - 1, name
            # One that passes the checks and still does not load: one line, from an engine that is well.
            from vllm.lora.request import LoRARequest

            engine._loras["spoilt"] = LoRARequest("spoilt", 9, str(tmp_path / "spoilt"))
            engine._are_loras_loaded = False
            with pytest.raises(ConfigError, match=r"model\.adapters\.spoilt = .*vLLM cannot load it") as caught:
                await ask(engine, requests[:1])
            assert "\n" not in str(caught.value)
            del engine._loras["spoilt"]
            assert await engine.is_well()
        finally:
            await engine.close()

    asyncio.run(run())
