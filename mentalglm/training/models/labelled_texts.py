"""Records to the token ids of their posts and the labels to learn: what a classifier's examples are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mentalglm.config import TrainConfig
from mentalglm.corpus.records import Record
from mentalglm.engine.classifier import Classifier, TextEncoder, longest_input
from mentalglm.tasks import Task


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A post as token ids, and which labels apply."""

    token_ids: list[int]
    targets: list[bool]
    """Of each of `task.answerable`."""


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """Many of them, of one task, in a few arrays; see `ExampleSet`."""

    task: Task
    classifier: Classifier
    """What is to learn them."""
    token_ids: npt.NDArray[np.int32]
    """Of all texts, one after the other."""
    offsets: npt.NDArray[np.int64]
    """Text i is `token_ids[offsets[i]:offsets[i + 1]]`."""
    targets: npt.NDArray[np.bool_]
    """(texts, labels)."""
    ids: list[str]
    """Of their records, for messages."""
    sources: npt.NDArray[np.int32]
    """Which part of the mixture each belongs to."""
    num_truncated: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each."""
        return np.diff(self.offsets)

    @property
    def num_prompt_tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of each that are read: all."""
        return self.lengths

    @property
    def num_learned(self) -> npt.NDArray[np.int64]:
        """What the loss of each is counted as: one text."""
        return np.ones(len(self), dtype=np.int64)

    def __getitem__(self, index: int) -> LabelledText:
        ids = self.token_ids[self.offsets[index] : self.offsets[index + 1]]
        return LabelledText(ids.tolist(), self.targets[index].tolist())


class LabelledTextEncoder:
    """Encodes records for an encoder's tokenizer, as the encoder engine encodes posts."""

    def __init__(self, tokenizer: Any, model_settings: Any, config: TrainConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._max_tokens = longest_input(tokenizer, model_settings, config.max_prompt_tokens)

    def encode_set(self, records: Sequence[Record], _: str) -> LabelledTexts:
        """All records, which are of one task."""
        task = records[0].task
        classifier = Classifier(
            task=task.name,
            task_version=task.version,
            task_digest=task.digest,
            input=self._config.encoder.input,
            mask_labels=self._config.encoder.mask_labels,
            max_tokens=self._max_tokens,
        )
        texts = TextEncoder(self._tokenizer, classifier, task).encode([record.text for record in records])
        return LabelledTexts(
            task,
            classifier,
            token_ids=np.array([token_id for text in texts for token_id in text.token_ids], dtype=np.int32),
            offsets=np.cumsum([0, *(len(text.token_ids) for text in texts)], dtype=np.int64),
            targets=np.array([[slug in record.labels for slug in task.answerable] for record in records], dtype=bool),
            ids=[record.id for record in records],
            sources=np.array([record.part for record in records], dtype=np.int32),
            num_truncated=sum(text.is_truncated for text in texts),
        )
