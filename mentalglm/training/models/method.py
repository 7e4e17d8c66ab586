"""What the methods of training differ in: how records are encoded, and what learns them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mentalglm.config import TrainConfig
from mentalglm.errors import ConfigError
from mentalglm.training.models.encoder_model import EncoderModel
from mentalglm.training.models.examples import ExampleEncoder
from mentalglm.training.models.labelled_texts import LabelledTextEncoder, LabelledTexts
from mentalglm.training.models.language_model import LanguageModel, with_new_adapter
from mentalglm.training.models.learner import Examples, Learner


def record_encoder(config: TrainConfig, base: Path) -> ExampleEncoder | LabelledTextEncoder:
    """Encodes records for the model in the folder `base`. Raises: ConfigError."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        settings = AutoConfig.from_pretrained(base, local_files_only=True)
    except (ValueError, OSError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"model.path = {config.model.path}: its tokenizer or config.json cannot be read ({cause}); give a model in "
            "Hugging Face's own format, with its tokenizer"
        ) from None
    if config.method == "encoder":
        return LabelledTextEncoder(tokenizer, settings, config)
    longest = getattr(settings, "max_position_embeddings", None)
    return ExampleEncoder(tokenizer, max_prompt_tokens=config.max_prompt_tokens, max_tokens=longest)


def check_tasks(config: TrainConfig, tasks: Iterable[str], key: str) -> None:
    """Raises: ConfigError where the method cannot learn these tasks in one stage, which the config calls `key`."""
    if config.method == "encoder" and len(names := sorted(tasks)) > 1:
        raise ConfigError(f"{key}: method: encoder learns one task, here are {', '.join(names)}; make a stage for each")


def load_learner(config: TrainConfig, examples: Examples, base: Path, start: Path | None) -> Learner:
    """What learns these examples: the model in the folder `base`, trained on from `start` where there is one.

    Raises: ConfigError.
    """
    if isinstance(examples, LabelledTexts):
        return EncoderModel.load(config, examples, base, start)
    return LanguageModel.load(config, base, start)


def outline(config: TrainConfig, examples: Examples, base: Path) -> Any:
    """The Hugging Face model that would be trained, without its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    with torch.device("meta"):
        if isinstance(examples, LabelledTexts):
            num_labels = examples.targets.shape[1]
            settings = AutoConfig.from_pretrained(base, local_files_only=True, num_labels=num_labels)
            return AutoModelForSequenceClassification.from_config(settings)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, local_files_only=True))
        return with_new_adapter(model, config) if config.method == "lora" else model
