"""A causal language model that is fine-tuned: an adapter beside it (LoRA), or all of its weights."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mentalglm.config import TrainConfig
from mentalglm.engine.weights import load_whole
from mentalglm.errors import ConfigError
from mentalglm.training.checkpoint import MANIFEST
from mentalglm.training.models.examples import Example
from mentalglm.training.models.learner import Learner
from mentalglm.training.models.loss import chunked_cross_entropy

_OF_WEIGHTS = ("config.json", "adapter_config.json", MANIFEST)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class LanguageModel(Learner):
    """A Hugging Face model whose forward pass is the summed loss of a batch."""

    def __init__(self, model: Any, *, chunk_tokens: int) -> None:
        super().__init__()
        self.model = model
        self._chunk_tokens = chunk_tokens

    @classmethod
    def load(cls, config: TrainConfig, base: Path, start: Path | None) -> "LanguageModel":
        """The model in the folder `base`, to be trained on from `start`: an adapter, or with `method: full` a model.

        Frozen weights have the config's dtype, trained ones float32. A new adapter's weights follow from the seed.
        Raises: ConfigError where it is no causal language model, or no whole one, or the adapter's modules are not
        there.
        """
        from transformers import AutoModelForCausalLM

        dtype = torch.float32 if config.method == "full" else DTYPES[config.dtype]
        folder = start if config.method == "full" and start is not None else base
        try:
            model = load_whole(AutoModelForCausalLM, folder, dtype=dtype, attn_implementation="sdpa")
        except (ValueError, OSError) as error:
            cause = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"model.path = {config.model.path}: cannot be trained ({cause}); give a causal language model in "
                "Hugging Face's own format"
            ) from None
        if config.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if config.method == "lora":
            model = _with_adapter(model, start) if start is not None else with_new_adapter(model, config)
        return cls(model, chunk_tokens=config.loss_chunk_tokens).train()

    @property
    def base(self) -> Any:
        """The Hugging Face model, without what PEFT puts around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Its decoder layers, for sharding."""
        layers: Sequence[nn.Module] = self._decoder.layers
        return layers

    @property
    def _decoder(self) -> Any:
        return getattr(self.base, self.base.base_model_prefix)

    def collate(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """See `Learner.collate`."""
        return collate(examples)

    def forward(self, token_ids: Tensor, is_learned: Tensor) -> Tensor:
        """Sum of the cross-entropy, in nats and float32, over the tokens that are learned.

        Both are (sequences, tokens), padded on the right, where causal attention never looks at it: no mask is needed.
        """
        hidden = self._decoder(input_ids=token_ids, use_cache=False).last_hidden_state
        wanted = is_learned[:, 1:]  # logits only where the next token is learned
        head = self.base.get_output_embeddings()
        return chunked_cross_entropy(
            hidden[:, :-1][wanted], token_ids[:, 1:][wanted], head, chunk_tokens=self._chunk_tokens
        )

    @torch.no_grad()
    def check(self, example: Example) -> None:
        """Raises: ConfigError where the model makes its logits of more than its last hidden state and its head, as a
        few do (scaled or capped logits): its loss would be another one here."""
        token_ids, is_learned = collate([example])
        device = next(self.parameters()).device
        token_ids, is_learned = token_ids.to(device), is_learned.to(device)
        was_training = self.training
        self.eval()
        ours = self(token_ids, is_learned)
        logits = self.base(input_ids=token_ids, use_cache=False).logits[:, :-1][is_learned[:, 1:]].float()
        theirs = nn.functional.cross_entropy(logits, token_ids[:, 1:][is_learned[:, 1:]], reduction="sum")
        self.train(was_training)
        if torch.isfinite(theirs) and not torch.isclose(ours, theirs, rtol=1e-2):
            raise ConfigError(
                f"model.path: {type(self.base).__name__} does not make its logits of its last hidden state by its "
                "output embeddings alone; this loop cannot train it"
            )

    def save(self, folder: Path, trained: Mapping[str, Tensor], config: TrainConfig, tokenizer_of: Path) -> None:
        """Writes what is trained, in float32, as PEFT or transformers would load it. `trained`: its state dict, of this
        module; `tokenizer_of`: folder of the tokenizer, which a whole model comes with."""
        state = {name.removeprefix("model."): value for name, value in trained.items()}
        if config.method == "lora":
            settings = self.model.peft_config["default"]
            settings.base_model_name_or_path, settings.revision = config.model.path, config.model.revision
            self.model.save_pretrained(folder, state_dict=state)
            (folder / "README.md").unlink(missing_ok=True)  # PEFT's; ours is written when the stage is done
            return
        self.model.save_pretrained(folder, state_dict=state)
        _write_dtype(folder, config.dtype)
        copy_tokenizer(tokenizer_of, folder)


def collate(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """(token ids, whether each is learned), both (examples, longest), padded on the right."""
    length = max(len(example.token_ids) for example in examples)
    token_ids = torch.zeros(len(examples), length, dtype=torch.long)
    is_learned = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, example in enumerate(examples):
        token_ids[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
        is_learned[row, example.num_prompt_tokens : len(example.token_ids)] = True
    return token_ids, is_learned


def copy_tokenizer(source: Path, target: Path) -> None:
    """Everything of a model's folder that is neither weights nor their index nor the model's settings, nor bears the
    name of a checkpoint's manifest."""
    for path in source.iterdir():
        is_text = path.suffix in (".json", ".jinja", ".model", ".txt", ".tiktoken")
        is_of_weights = path.name.endswith(".index.json") or path.name in _OF_WEIGHTS
        if path.is_file() and is_text and not is_of_weights and not (target / path.name).exists():
            shutil.copy(path, target / path.name)


def _write_dtype(folder: Path, dtype: str) -> None:
    """Says in a model's settings what engines are to round its weights to; those of a checkpoint are finer."""
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {"dtype": dtype}, indent=2), encoding="utf-8")


def with_new_adapter(model: Any, config: TrainConfig) -> Any:
    """The model with the config's adapter, whose random weights follow from the seed. Raises: ConfigError."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(config.seed)
    settings = LoraConfig(task_type="CAUSAL_LM", **config.lora.model_dump())
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(
            f"lora.target_modules = {config.lora.target_modules}: {' '.join(str(error).split())[:200]}; name "
            "modules of the model, or all-linear"
        ) from None


def _with_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder, is_trainable=True)
