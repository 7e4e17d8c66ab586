"""Adapters under real vLLM: each answers as it does under PEFT, all of them in one engine; and scores labels so."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mentalglm.config import GenerationConfig, ModelConfig, VllmEngineConfig
from mentalglm.corpus.synthetic import generate_posts
from mentalglm.engine.model import DEMO_MODEL, resolve_model
from mentalglm.engine.protocol import Completion, Request
from mentalglm.engine.vllm import VllmEngine
from mentalglm.errors import ConfigError
from mentalglm.tasks import Task, answer_heads, candidate_answers, load_task, render_prompt
from mentalglm.training.demo.evaluate import generate, load
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


async def weigh(engine: VllmEngine, task: Task, adapter: str, named: Sequence[str] = ()) -> list[Completion]:
    candidates = tuple(candidate_answers(task, named).values())
    prompts = [render_prompt(task, text) for text in TEXTS]
    return await ask(
        engine, [Request(task.name, prompt, adapter, candidates=candidates, lead="\n") for prompt in prompts]
    )


def scores_of(model: Any, engine: VllmEngine, task: Task, text: str, named: Sequence[str] = ()) -> list[float]:
    """The same without a tree: decoding with transformers, held to the candidates from their first token to their
    last."""
    [encoded] = engine.encode([render_prompt(task, text)])
    assert encoded is not None
    every: list[list[tuple[int, ...]]] = []
    for whole, *longer in candidate_answers(task, named).values():
        ends = [(*engine._encoder.encode_text(f"\n{whole}"), end_id) for end_id in engine._end_ids]
        every.append([*ends, *(tuple(engine._encoder.encode_text(f"\n{each}")) for each in longer)])
    ways: dict[tuple[int, ...], set[int]] = {}
    for ids in (ids for wordings in every for ids in wordings):
        for at, token_id in enumerate(ids):
            ways.setdefault(ids[:at], set()).add(token_id)

    def probability(ids: tuple[int, ...]) -> float:
        with torch.no_grad():
            logits = model(torch.tensor([[*encoded.token_ids, *ids]])).logits[0, len(encoded.token_ids) - 1 :].double()
        found = [(sorted(ways[ids[:at]]), token_id, logits[at]) for at, token_id in enumerate(ids)]
        return math.prod(float(each[of].softmax(0)[of.index(token_id)]) for of, token_id, each in found)

    return [sum(probability(ids) for ids in set(wordings)) for wordings in every]


async def check_scores(engine: VllmEngine, models: dict[str, Any]) -> None:
    pathway = load_task("cognitive_pathway")
    for task, name, named, num_asked in (
        (TASK, "values", [], 2),
        (pathway, "base", [], 6),
        (pathway, "base", ["study_work"], 6),
    ):
        found = await weigh(engine, task, name, named)
        assert [each.num_output_tokens for each in found] == [num_asked] * NUM_POSTS
        wanted = scores_of(models[name], engine, task, TEXTS[0], named)
        assert found[0].candidate_probabilities == pytest.approx(wanted, abs=1e-4)
    # Of a binary task: what the answer itself says at the token where its two answers part.
    risk = load_task("suicide_risk")
    prompts = [render_prompt(risk, text) for text in TEXTS]
    answered = await ask(
        engine,
        [Request(risk.name, prompt, "base", risk.markers, True, alternatives=answer_heads(risk)) for prompt in prompts],
    )
    weighed = await weigh(engine, risk, "base")
    for one, other in zip(answered, weighed, strict=True):
        assert one.text.startswith("\n")
        assert other.candidate_probabilities == pytest.approx(
            (1 - one.positive_probability, one.positive_probability),
            abs=1e-4,  # type: ignore[operator]
        )


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
            await check_scores(engine, peft)
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
