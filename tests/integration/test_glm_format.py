"""The two GLM formats under real vLLM: its own ChatGLM implementation, and its Transformers backend for glm."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from mentalglm.config import GenerationConfig, ModelConfig, VllmEngineConfig
from mentalglm.corpus.synthetic import generate_posts
from mentalglm.engine.model import resolve_model
from mentalglm.engine.protocol import Request
from mentalglm.engine.vllm import VllmEngine
from mentalglm.tasks import load_task, render_prompt
from mentalglm.training.glm_format import convert_format
from mentalglm.training.merged_model import export_merged
from tests.chatglm import save_chatglm, save_chatglm_adapter

pytestmark = pytest.mark.slow

TASK = load_task("suicide_risk")
PROMPTS = [render_prompt(TASK, post.text) for post in generate_posts(6, seed=9)]
NUM_TOKENS, NUM_LIKELY = 12, 5
TOLERANCE = 5e-4
"""Of a log-probability, in nats: everything is computed in float32, in another order."""

Answer = tuple[tuple[int, ...], tuple[int, ...], list[dict[int, float]]]
"""Prompt ids, greedy ids, and for each of these: id -> log-probability of the likeliest."""


def answers(model: Path, **adapters: Path | None) -> dict[str | None, list[Answer]]:
    """What vLLM answers to each prompt with each adapter, all in one batch; and what our engine makes of the first."""
    folders = {name: None if folder is None else str(folder) for name, folder in adapters.items()}
    resolved = resolve_model(ModelConfig(path=str(model), adapters=folders))
    config = VllmEngineConfig(max_num_seqs=32, dtype="float32")
    generation = GenerationConfig(max_tokens=NUM_TOKENS, max_prompt_tokens=500)
    found: dict[str | None, list[Answer]] = {name: [] for name in resolved.adapters}

    async def run() -> None:
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, logprobs=NUM_LIKELY)
        engine = await asyncio.to_thread(VllmEngine, config, generation, resolved, num_gpus=0)
        try:
            prompts = [each.token_ids for each in engine.encode(PROMPTS) if each]
            pairs = [(name, ids) for name in found for ids in prompts]
            outputs = await asyncio.gather(*(engine._ask(ids, parameters, name) for name, ids in pairs))
            for (name, ids), output in zip(pairs, outputs, strict=True):
                [answer] = output.outputs
                likely = [{id_: each.logprob for id_, each in step.items()} for step in answer.logprobs]
                found[name].append((tuple(ids), tuple(answer.token_ids), likely))
            name, [encoded, *_] = next(iter(found)), engine.encode(PROMPTS)
            assert encoded is not None
            completion = await engine.generate(Request(TASK.name, PROMPTS[0], name), encoded)
            _, token_ids, likely = found[name][0]
            assert completion.text == AutoTokenizer.from_pretrained(model).decode(token_ids, skip_special_tokens=True)
            assert completion.head_logprob == pytest.approx(
                sum(step[token_id] for token_id, step in zip(token_ids, likely, strict=True)), abs=1e-3
            )
        finally:
            await engine.close()

    asyncio.run(run())
    return found


def assert_equal(some: list[Answer], others: list[Answer]) -> None:
    for (prompt, ids, likely), (prompt_, ids_, likely_) in zip(some, others, strict=True):
        assert (prompt, ids) == (prompt_, ids_)
        for one, other in zip(likely, likely_, strict=True):
            assert one == pytest.approx(other, abs=TOLERANCE)


def by_transformers(model: Any, answer: Answer) -> Answer:
    """The same answer as greedy decoding with transformers, and PEFT, gives it."""
    prompt, ids, likely = answer
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.double().log_softmax(-1)
    steps = [{id_: float(row[id_]) for id_ in step} for row, step in zip(logprobs, likely, strict=True)]
    return prompt, tuple(logits.argmax(-1).tolist()), steps


def test_both_formats_answer_alike_under_vllm_and_as_transformers_and_peft_do(tmp_path: Path) -> None:
    published = save_chatglm(tmp_path / "published", seed=2)
    convert_format(str(published), tmp_path / "glm", "glm")
    convert_format(str(tmp_path / "glm"), tmp_path / "chatglm", "chatglm")  # with a tokenizer that needs no code
    fused = save_chatglm_adapter(tmp_path / "fused", published, std=0.3, use_rslora=True, rank_pattern={"dense": 6})
    convert_format(str(fused), tmp_path / "native", "glm")
    both = resolve_model(ModelConfig(path=str(tmp_path / "glm"), adapter=str(tmp_path / "native"), merge=True))
    export_merged(both, tmp_path / "merged")

    own = answers(tmp_path / "chatglm", adapter=fused, base=None)
    native = answers(tmp_path / "glm", adapter=tmp_path / "native", base=None)
    [merged] = answers(tmp_path / "merged").values()
    assert [ids for _, ids, _ in own["base"]] != [ids for _, ids, _ in own["adapter"]]
    for name in ("adapter", "base"):
        assert_equal(native[name], own[name])
    assert_equal(merged, own["adapter"])
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "glm")
    assert_equal([by_transformers(base, each) for each in own["base"]], own["base"])
    trained = PeftModel.from_pretrained(base, tmp_path / "native")
    assert_equal([by_transformers(trained, each) for each in own["adapter"]], own["adapter"])
