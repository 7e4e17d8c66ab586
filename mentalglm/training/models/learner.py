"""What the training loop asks of what is trained, and of its examples."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from mentalglm.config import TrainConfig


class Examples(Protocol):
    """The encoded records of a stage. They go through Ray's object store."""

    @property
    def ids(self) -> list[str]:
        """Of their records, for messages."""
        ...

    @property
    def sources(self) -> npt.NDArray[np.int32]:
        """Which part of the mixture each belongs to."""
        ...

    @property
    def num_truncated(self) -> int:
        """Examples whose post was cut."""
        ...

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each."""
        ...

    @property
    def num_prompt_tokens(self) -> npt.NDArray[Any]:
        """Of these, tokens that are read and not written."""
        ...

    @property
    def num_learned(self) -> npt.NDArray[np.int64]:
        """How many parts the loss of each is the sum of: tokens, or the text as a whole. The loss of a batch is divided
        by the number of all its parts."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Learner(nn.Module, ABC):
    """A model whose forward pass is the summed loss of a batch, as `collate` makes it."""

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """What FSDP shards one by one."""

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> tuple[Tensor, ...]:
        """Arguments of the forward pass, the first dimension of each being the examples. The last one, boolean, says
        what the loss is the sum of; with nothing but False in it, it is 0 and has a gradient all the same."""

    @abstractmethod
    def check(self, example: Any) -> None:
        """Raises: ConfigError where this model would not be trained as it is used."""

    @abstractmethod
    def save(self, folder: Path, trained: Mapping[str, Tensor], config: TrainConfig, tokenizer_of: Path) -> None:
        """Writes what is trained, as it is loaded for scoring. `trained`: its state dict, of this module;
        `tokenizer_of`: folder of the tokenizer, which a whole model comes with."""
