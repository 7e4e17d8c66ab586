"""A tiny BERT with random weights, as one comes from the hub: config.json, model.safetensors, vocab.txt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mentalglm.config import TrainConfig
from mentalglm.corpus.records import Record
from mentalglm.corpus.synthetic import generate_posts
from mentalglm.tasks import Task
from mentalglm.training.models.encoder_model import EncoderModel
from mentalglm.training.models.labelled_texts import LabelledTextEncoder, LabelledTexts
from mentalglm.training.models.method import record_encoder

_SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tiny_bert(
    folder: Path,
    *,
    hidden_size: int = 32,
    num_layers: int = 2,
    max_tokens: int = 128,
    spread: float = 0.02,
    more: str = "",
) -> Path:
    """Characters of the synthetic posts, and `more`, are its vocabulary. `spread`: of its weights, which follow from a
    seed."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True)
    texts = [text for post in generate_posts(300, seed=9) for text in (post.text, *post.explanations.values())]
    vocabulary = [
        *_SPECIAL_TOKENS,
        *sorted({each for text in (*texts, more) for each in text.lower() if not each.isspace()}),
    ]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=max_tokens,
        initializer_range=spread,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=max_tokens).save_pretrained(folder)
    return folder


def tiny_classifier(folder: Path, base: Path, task: Task, *, spread: float = 1.0, **settings: Any) -> Path:
    """A classifier for `task` as training saves one, untrained: `spread` is that of its head's weights, so that labels
    differ from post to post. `settings`: of the config's `encoder`."""
    import torch

    examples = labelled_texts(base, task, [record(task, "好累。")], **settings)
    config = train_config(base, task, **settings)
    model = EncoderModel.load(config, examples, base, None)
    torch.nn.init.normal_(model.model.classifier.weight, std=spread)
    folder.mkdir(parents=True)
    model.save(folder, {f"model.{name}": value for name, value in model.model.state_dict().items()}, config, base)
    return folder


def train_config(base: Path, task: Task, **settings: Any) -> TrainConfig:
    """Of a stage of which nothing is run."""
    stage = {"train": [{"uri": "records.jsonl", "task": task.name}]}
    return TrainConfig.model_validate(
        {
            "output": {"uri": "out"},
            "method": "encoder",
            "model": {"path": str(base)},
            "stages": {"S1": stage},
            "encoder": settings,
        }
    )


def labelled_texts(base: Path, task: Task, records: Sequence[Record], **settings: Any) -> LabelledTexts:
    """The records as `base` reads them."""
    encoder = record_encoder(train_config(base, task, **settings), base)
    assert isinstance(encoder, LabelledTextEncoder)
    return encoder.encode_set(records, "stages.S1.train")


def record(task: Task, text: str, *labels: str) -> Record:
    """A record without an explanation."""
    return Record(task, text, labels, None, id=text)
