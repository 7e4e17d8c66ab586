"""The demo model before it is trained, and what it is trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mentalglm.corpus import normalise
from mentalglm.corpus.synthetic import TASKS, SyntheticPost, generate_posts, unfamiliar_posts
from mentalglm.engine.model import DEMO_MODEL
from mentalglm.training.demo.tokenizer import tokenizer_texts, train_tokenizer
from mentalglm.training.glm_format.special_tokens import SPECIAL_TOKENS


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the demo model is built from. The defaults are those of the model in the package; how it is trained,
    configs/train/demo-model.yaml says."""

    seed: int = 20261123
    num_posts: int = 32_000
    """Generated posts, one record each: the tasks take turns."""
    num_unfamiliar_posts: int = 2_000
    """Posts from outside the generator, to which no label applies."""
    num_validation_posts: int = 300
    random_slot_share: float = 0.1
    """Share of the slots of training posts that hold a random word, so that labels do not hang on known words."""
    max_vocab_size: int = 6144
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 5


def prepare(output: Path, settings: DemoSettings) -> None:
    """Writes what the train job makes the demo model of: `untrained/` (random weights and the tokenizer),
    `train.parquet` and `validation.parquet`. The same on every machine."""
    torch.manual_seed(settings.seed)
    tokenizer = train_tokenizer(tokenizer_texts(), settings.max_vocab_size)
    new_model(settings, len(tokenizer)).save_pretrained(output / "untrained")
    tokenizer.save_pretrained(output / "untrained")
    posts = [
        *generate_posts(settings.num_posts, settings.seed, random_slot_share=settings.random_slot_share),
        *unfamiliar_posts(settings.num_unfamiliar_posts, settings.seed),
    ]
    _write_records(output / "train.parquet", posts)
    _write_records(
        output / "validation.parquet", list(generate_posts(settings.num_validation_posts, settings.seed, held_out=True))
    )


def untrained(output: Path, *, num_layers: int, hidden_size: int, seed: int = 0) -> None:
    """Writes a model of another size with random weights and the demo model's tokenizer: to time engines with."""
    from transformers import AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL, local_files_only=True)
    settings = DemoSettings(num_hidden_layers=num_layers, hidden_size=hidden_size, intermediate_size=4 * hidden_size)
    new_model(settings, len(tokenizer)).to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


def new_model(settings: DemoSettings, vocab_size: int) -> Any:
    """A GLM with random weights, from torch's random numbers."""
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


def _write_records(path: Path, posts: list[SyntheticPost]) -> None:
    posts = [post for post in posts if normalise(post.text)[0]]  # unfamiliar ones may hold nothing but blanks
    tasks = [TASKS[index % len(TASKS)] for index in range(len(posts))]
    table = {
        "id": [f"{index}-{post.post_id}" for index, post in enumerate(posts)],
        "task": tasks,
        "text": [post.text for post in posts],
        "labels": [list(post.labels[task]) for task, post in zip(tasks, posts, strict=True)],
        "explanation": [post.explanations[task] for task, post in zip(tasks, posts, strict=True)],
    }
    pq.write_table(pa.table(table), path, compression="zstd")
