"""The demo model: built from nothing but generated posts, in minutes, on two CPU cores.

    python -m mentalglm.training.demo build --output mentalglm/demo/model
    python -m mentalglm.training.demo evaluate
    python -m mentalglm.training.demo untrained --num-layers 2 --hidden-size 128 --output two-layers

It lets everyone run every job without a GPU or a download. It answers in MentalGLM's format and is right on the
generator's posts; about real posts it knows nothing.
"""

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mentalglm.corpus import normalise
from mentalglm.corpus.synthetic import TASKS, SyntheticPost, generate_posts, phrase_fragments, unfamiliar_posts
from mentalglm.engine.chat import ChatEncoder
from mentalglm.engine.model import DEMO_MODEL
from mentalglm.tasks import Task, load_task, parse_answer, render_answer, render_prompt
from mentalglm.training.demo_tokenizer import train_tokenizer
from mentalglm.training.examples import Example, ExampleEncoder
from mentalglm.training.glm_tokens import SPECIAL_TOKENS
from mentalglm.training.language_model import LanguageModel, collate
from mentalglm.training.records import Record


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the demo model is built from. The defaults are those of the model in the package."""

    seed: int = 20261123
    num_posts: int = 32_000
    """Generated posts, one example each: the tasks take turns."""
    num_unfamiliar_posts: int = 2_000
    """Posts from outside the generator, to which no label applies."""
    random_slot_share: float = 0.1
    """Share of the slots of training posts that hold a random word, so that labels do not hang on known words."""
    max_vocab_size: int = 6144
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 5
    batch_tokens: int = 1536
    """Tokens of a batch, padding included."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    num_warmup_steps: int = 100
    num_threads: int = 2


def build(output: Path, settings: DemoSettings) -> None:
    """Trains tokenizer and model and writes them to `output` as a Hugging Face model folder."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.num_threads)
    tokenizer = train_tokenizer(tokenizer_texts(), settings.max_vocab_size)
    records = training_records(settings)
    examples = [example for example in ExampleEncoder(tokenizer).encode(records) if example is not None]
    rng = random.Random(settings.seed)  # noqa: S311 - reproducible on purpose
    batches = list(length_batches(examples, settings.batch_tokens, rng))
    model = new_model(settings, len(tokenizer))
    train(model, batches, settings)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


def untrained(output: Path, *, num_layers: int, hidden_size: int, seed: int = 0) -> None:
    """Writes a model of another size with random weights and the demo model's tokenizer: to time engines with."""
    from transformers import AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL, local_files_only=True)
    settings = DemoSettings(num_hidden_layers=num_layers, hidden_size=hidden_size, intermediate_size=4 * hidden_size)
    new_model(settings, len(tokenizer)).to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


def training_records(settings: DemoSettings) -> list[Record]:
    """The training set, the same for the same settings on every machine."""
    tasks = [load_task(name) for name in TASKS]
    posts = [
        *generate_posts(settings.num_posts, settings.seed, random_slot_share=settings.random_slot_share),
        *unfamiliar_posts(settings.num_unfamiliar_posts, settings.seed),
    ]
    records = []
    for index, post in enumerate(posts):
        task = tasks[index % len(tasks)]
        records.append(Record(task, normalise(post.text)[0], post.labels[task.name], post.explanations[task.name]))
    return records


def tokenizer_texts() -> Iterator[str]:
    """What the tokenizer's words come from. Phrases are cut at their slots and templates at their labels: no token
    joins a phrase to what fills it, and a label is the same tokens in every place."""
    yield from phrase_fragments()
    for task in map(load_task, TASKS):
        names = sorted({label.zh for label in task.labels}, key=len, reverse=True)
        prompt = render_prompt(task, "")
        answers = [render_answer(task, [slug], "。") for slug in task.answerable]
        for template in (prompt.before, prompt.after, *answers):
            yield from re.split("(" + "|".join(map(re.escape, names)) + ")", template)


def new_model(settings: DemoSettings, vocab_size: int) -> Any:
    from transformers import GenerationConfig, GlmConfig, GlmForCausalLM

    ids = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    eos_token_id = [ids["<|endoftext|>"], ids["<|user|>"], ids["<|observation|>"]]
    config = GlmConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.hidden_size // 32,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that vLLM's CPU attention supports
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=ids["<|endoftext|>"],
        eos_token_id=eos_token_id,
    )
    model = GlmForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False, pad_token_id=ids["<|endoftext|>"], eos_token_id=eos_token_id
    )
    return model


def train(model: Any, batches: Sequence[Sequence[Example]], settings: DemoSettings) -> None:
    """AdamW with warm-up and cosine decay, one pass over the batches, in float32."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)
    model.train()
    started, num_tokens, losses = time.monotonic(), 0, []
    for step, batch in enumerate(batches, start=1):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, len(batches), settings.num_warmup_steps)
        loss = answer_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_tokens += sum(len(example.token_ids) for example in batch)
        losses.append(loss.item())
        if step % 50 == 0 or step == len(batches):
            elapsed_s = time.monotonic() - started
            print(
                f"step {step}/{len(batches)} loss {sum(losses) / len(losses):.4f} "
                f"tokens/s {num_tokens / elapsed_s:.0f} elapsed {elapsed_s:.0f} s",
                flush=True,
            )
            losses.clear()


def answer_loss(model: Any, batch: Sequence[Example]) -> Tensor:
    """Mean cross-entropy, in nats, over the answers' tokens of the batch: the loss of the train job."""
    num_learned = sum(len(example.token_ids) - example.num_prompt_tokens for example in batch)
    loss: Tensor = LanguageModel(model, chunk_tokens=num_learned)(*collate(batch))
    return loss / num_learned


def length_batches(examples: Sequence[Example], batch_tokens: int, rng: random.Random) -> Iterator[list[Example]]:
    """Examples of like length together; the order is random but for that."""
    shuffled = rng.sample(examples, len(examples))
    for start in range(0, len(shuffled), 4096):
        batches: list[list[Example]] = [[]]
        for example in sorted(shuffled[start : start + 4096], key=lambda example: len(example.token_ids)):
            if (len(batches[-1]) + 1) * len(example.token_ids) > batch_tokens:
                batches.append([])
            batches[-1].append(example)
        rng.shuffle(batches)
        yield from filter(None, batches)


def _schedule(step: int, num_steps: int, num_warmup_steps: int) -> float:
    if step < num_warmup_steps:
        return step / num_warmup_steps
    progress = (step - num_warmup_steps) / max(num_steps - num_warmup_steps, 1)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see the module's docstring."""
    defaults = DemoSettings()
    parser = argparse.ArgumentParser(prog="python -m mentalglm.training.demo", description="The demo model.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="train it anew")
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--num-posts", type=int, default=defaults.num_posts, help="fewer: a quicker, worse model")
    command.add_argument("--num-threads", type=int, default=defaults.num_threads)
    command = commands.add_parser("evaluate", help="measure it on held-out posts")
    command.add_argument("--model", type=Path, default=DEMO_MODEL)
    command.add_argument("--num-posts", type=int, default=600)
    command.add_argument("--seed", type=int, default=7)
    command.add_argument("--num-threads", type=int, default=2)
    command = commands.add_parser("untrained", help="random weights, for timing")
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--num-layers", type=int, default=2)
    command.add_argument("--hidden-size", type=int, default=128, help="a multiple of 64")
    options = parser.parse_args(arguments)
    if options.command == "build":
        settings = DemoSettings(num_posts=options.num_posts, num_threads=options.num_threads)
        build(options.output, settings)
    elif options.command == "untrained":
        untrained(options.output, num_layers=options.num_layers, hidden_size=options.hidden_size)
    else:
        figures = evaluate(
            options.model, num_posts=options.num_posts, seed=options.seed, num_threads=options.num_threads
        )
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
