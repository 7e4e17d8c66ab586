"""What the demo model is worth: its answers to posts whose labels are known."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from mentalglm.corpus.synthetic import TASKS, SyntheticPost, generate_posts, unfamiliar_posts
from mentalglm.engine.chat import ChatEncoder
from mentalglm.tasks import Task, load_task, parse_answer, render_prompt


def evaluate(model_path: Path, *, num_posts: int, seed: int, num_threads: int) -> dict[str, Any]:
    """Figures on held-out and on unfamiliar posts, every task: greedy decoding in bfloat16 with `transformers`.

    `parse_rate` is the share of answers that the task's parser accepts; `quote_rate` the share of explanations all of
    whose quotations occur in the post; F1 is binary (high risk) or micro over the labels. An answer that cannot be
    parsed counts as no label.
    """
    torch.set_num_threads(num_threads)
    familiar = list(generate_posts(num_posts, seed, held_out=True))
    unfamiliar = list(unfamiliar_posts(max(num_posts // 5, 1), seed + 1))
    tokenizer, model = load(model_path)
    result: dict[str, Any] = {"num_posts": num_posts, "num_unfamiliar_posts": len(unfamiliar), "seed": seed}
    for task in map(load_task, TASKS):
        result[task.name] = _score(task, familiar, generate(tokenizer, model, task, [post.text for post in familiar]))
        answers = generate(tokenizer, model, task, [post.text for post in unfamiliar])
        result[task.name]["unfamiliar_parse_rate"] = _score(task, unfamiliar, answers)["parse_rate"]
    return result


def load(model_path: Path) -> tuple[Any, Any]:
    """(tokenizer, model in bfloat16) of a folder that `build` wrote."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16, local_files_only=True)
    return AutoTokenizer.from_pretrained(model_path, local_files_only=True), model.eval()


def generate(
    tokenizer: Any, model: Any, task: Task, texts: Sequence[str], *, max_tokens: int = 256, batch_size: int = 32
) -> list[str]:
    """The model's greedy answer for each text, in order, special tokens left out."""
    encoder = ChatEncoder(tokenizer, max_prompt_tokens=1024)
    prompts = [
        prompt.token_ids if prompt else [] for prompt in encoder.encode([render_prompt(task, text) for text in texts])
    ]
    answers = [""] * len(texts)
    order = sorted((index for index, prompt in enumerate(prompts) if prompt), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        length = len(prompts[indices[-1]])
        token_ids = torch.full((len(indices), length), tokenizer.pad_token_id)
        mask = torch.zeros_like(token_ids)
        for row, index in enumerate(indices):
            token_ids[row, length - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, length - len(prompts[index]) :] = 1
        with torch.inference_mode():
            output = model.generate(
                input_ids=token_ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False
            )
        decoded = tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        for index, answer in zip(indices, decoded, strict=True):
            answers[index] = answer
    return answers


def _score(task: Task, posts: Sequence[SyntheticPost], answers: Sequence[str]) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    parsed = [parse_answer(task, answer) for answer in answers]
    slugs = [label.slug for label in task.labels]
    if task.name == "suicide_risk":
        slugs = ["high_risk"]
    gold = [[slug in post.labels[task.name] for slug in slugs] for post in posts]
    predicted = [[answer.status == "ok" and slug in answer.labels for slug in slugs] for answer in parsed]
    quotations = [re.findall("“(.*?)”", answer.explanation or "") for answer in parsed]
    return {
        "parse_rate": _share(answer.status == "ok" for answer in parsed),
        "f1": round(float(f1_score(gold, predicted, average="micro", zero_division=0)), 4),
        "exact_match": _share(g == p for g, p in zip(gold, predicted, strict=True)),
        "quote_rate": _share(
            all(quotation in post.text for quotation in found) for post, found in zip(posts, quotations, strict=True)
        ),
        "explained": _share(bool(answer.explanation) for answer in parsed),
    }


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return round(sum(values) / len(values), 4)
