"""The loss of language modelling, in little memory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint


def chunked_cross_entropy(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], *, chunk_tokens: int
) -> Tensor:
    """Sum of the cross-entropy over all tokens, in nats and float32.

    `hidden` (tokens, hidden size) and `targets` (tokens,) are of the tokens that are learned; `head` maps to logits.
    Logits (GLM-4: 151,552 for each token) exist for `chunk_tokens` tokens at a time and are computed anew in the
    backward pass, except where one chunk holds all.
    """

    def loss_of(part: Tensor, of: Tensor) -> Tensor:
        return cross_entropy(head(part).float(), of, reduction="sum")

    if len(targets) <= chunk_tokens:
        return loss_of(hidden, targets)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for part, of in zip(torch.split(hidden, chunk_tokens), torch.split(targets, chunk_tokens), strict=True):
        total = total + checkpoint(loss_of, part, of, use_reentrant=False)
    return total
