"""An encoder that is fine-tuned to classify: the baselines of the paper, and the consistency classifier of appendix C.

How consistent explanations are with their labels: train with `encoder.input: explanation` on records whose
`text_column` is the explanation; score the `explanation` column of a run's Parquet (`input.text_column: explanation`)
with the classifier; evaluate that against the labels. Rows without an explanation are `empty_text`. With
`encoder.mask_labels: true`, explanations are read without the names of labels: what F1 is left is not mere leakage.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from mentalglm.config import TrainConfig
from mentalglm.engine.classifier import SETTINGS, has_one_answer, read_classifier
from mentalglm.engine.encoder import pad
from mentalglm.engine.weights import load_whole
from mentalglm.errors import ConfigError
from mentalglm.training.models.labelled_texts import LabelledText, LabelledTexts
from mentalglm.training.models.language_model import copy_tokenizer
from mentalglm.training.models.learner import Learner

_NUM_PADDED = 8
"""Tokens of padding that `check` tries."""


class EncoderModel(Learner):
    """A Hugging Face sequence-classification model whose forward pass is the summed loss of a batch."""

    def __init__(self, model: Any, examples: LabelledTexts) -> None:
        super().__init__()
        self.model = model
        self._classifier = examples.classifier
        self._has_one_answer = has_one_answer(examples.task)
        self._pad_id = model.config.pad_token_id or 0

    @classmethod
    def load(cls, config: TrainConfig, examples: LabelledTexts, base: Path, start: Path | None) -> "EncoderModel":
        """The encoder in the folder `base` with a new head, or the classifier in `start` to be trained on.

        All weights are float32. A new head's follow from the seed. Raises: ConfigError where it is no encoder, or no
        whole one, or a classifier for another task.
        """
        from transformers import AutoModelForSequenceClassification

        folder, task = start or base, examples.task
        if (folder / SETTINGS).is_file() and not (found := read_classifier(folder)).fits(task):
            raise ConfigError(
                f"{folder}: is a classifier for {found.task} {found.task_version} ({found.task_digest[:12]}), and the "
                f"records are of {task.name} {task.version} ({task.digest[:12]}); start from the encoder itself"
            )
        torch.manual_seed(config.seed)
        kind = "single_label_classification" if has_one_answer(task) else "multi_label_classification"
        try:
            model = load_whole(
                AutoModelForSequenceClassification,
                folder,
                new_head=start is None,
                dtype=torch.float32,
                num_labels=len(task.answerable),
                id2label=dict(enumerate(task.answerable)),
                label2id={slug: number for number, slug in enumerate(task.answerable)},
                problem_type=kind,
                ignore_mismatched_sizes=True,  # a head for other labels makes room for a new one
            )
        except (ValueError, OSError) as error:
            cause = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"model.path = {config.model.path}: cannot be trained ({cause}); give an encoder such as BERT in "
                "Hugging Face's own format"
            ) from None
        if config.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return cls(model, examples).train()

    @property
    def layers(self) -> Sequence[nn.Module]:
        """See `Learner.layers`. It is not sharded."""
        return ()

    def collate(self, examples: Sequence[LabelledText]) -> tuple[Tensor, ...]:
        """See `Learner.collate`: (token ids, attention mask), both (texts, longest); which labels apply, (texts,
        labels); whether each text counts, (texts,)."""
        token_ids, mask = pad([example.token_ids for example in examples], self._pad_id)
        targets = torch.tensor([example.targets for example in examples], dtype=torch.float32)
        return token_ids, mask, targets, torch.ones(len(examples), dtype=torch.bool)

    def forward(self, token_ids: Tensor, mask: Tensor, targets: Tensor, is_learned: Tensor) -> Tensor:
        """Sum of the loss, in nats and float32, over the texts that count; of one text with several labels it is their
        mean."""
        logits = self.model(input_ids=token_ids, attention_mask=mask).logits.float()
        if self._has_one_answer:
            losses = cross_entropy(logits, targets.argmax(-1), reduction="none")
        else:
            losses = binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)
        return losses[is_learned].sum()

    @torch.no_grad()
    def check(self, example: LabelledText) -> None:
        """Raises: ConfigError where padding changes what the model says: a text's labels would depend on the others of
        its batch."""
        device = next(self.parameters()).device
        token_ids = example.token_ids[: self._classifier.max_tokens - _NUM_PADDED]
        was_training = self.training
        self.eval()
        found = []
        for num_padded in (0, _NUM_PADDED):
            ids = torch.tensor([token_ids + num_padded * [self._pad_id]], device=device)
            mask = torch.tensor([len(token_ids) * [1] + num_padded * [0]], device=device)
            found.append(self.model(input_ids=ids, attention_mask=mask).logits.float())
        self.train(was_training)
        alone, beside = found
        if torch.isfinite(alone).all() and not torch.allclose(alone, beside, rtol=1e-2, atol=1e-2):
            raise ConfigError(
                f"model.path: {type(self.model).__name__} reads padding as if it were text; give another encoder"
            )

    def save(self, folder: Path, trained: Mapping[str, Tensor], config: TrainConfig, tokenizer_of: Path) -> None:
        """Writes the classifier as transformers and the encoder engine load it, in float32. See `Learner.save`."""
        state = {name.removeprefix("model."): value for name, value in trained.items()}
        self.model.save_pretrained(folder, state_dict=state)
        copy_tokenizer(tokenizer_of, folder)
        self._classifier.write(folder)
