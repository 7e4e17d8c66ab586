"""Forced continuation: how likely are some given answers against each other, whatever a model would write by itself.

As token ids the answers are a tree with the prompt at its root. At each token where they part, a fork, the model says
how likely each way is; over the ways that there are these add up to 1. An answer's probability is the product along
its path: that with which decoding comes to it that is held to these answers (as guided decoding is, token by token). A
path with one way costs nothing, so the forks are all that is asked, a token each.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mentalglm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Fork:
    """A place where answers part."""

    prefix: tuple[int, ...]
    """Token ids that they have in common, from the first one of the answer."""
    next_ids: tuple[int, ...]
    """The token ids that each way begins with."""


class IndistinctError(ValueError):
    """Two answers are the same tokens, or one goes on where another just ends."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"answers {one} and {other} cannot be told apart by their tokens")
        self.pair = (one, other)


class AnswerTree:
    """Where answers part.

    `answers`: for each one the token ids of its wordings: beginnings of what a model may write, any of which counts as
    this answer. A wording is followed no further than to where it can be that of no other answer. Raises:
    IndistinctError.
    """

    def __init__(self, answers: Sequence[Sequence[Sequence[int]]]) -> None:
        self.forks: list[Fork] = []
        self._paths: list[list[list[tuple[int, int]]]] = [[] for _ in answers]
        """For each answer its ways through the tree: (number of the fork, token id taken there), from the root on."""
        self._grow([(ids, number) for number, wordings in enumerate(answers) for ids in wordings], 0, [])

    def probabilities(self, logprobs: Sequence[Mapping[int, float]]) -> tuple[float, ...]:
        """Of each answer; they add up to 1. `logprobs`: for each fork, natural log-probabilities of its `next_ids`."""
        shares = [_normalised(fork, found) for fork, found in zip(self.forks, logprobs, strict=True)]
        return tuple(
            math.fsum(math.prod(shares[fork][token_id] for fork, token_id in path) for path in paths)
            for paths in self._paths
        )

    def _grow(self, wordings: list[tuple[Sequence[int], int]], at: int, path: list[tuple[int, int]]) -> None:
        """Below a place `at` tokens from the root, which `path` leads to, and these wordings (ids, answer) come by."""
        answers = {answer for _, answer in wordings}
        if len(answers) == 1:
            self._paths[answers.pop()].append(path)
            return
        ways: dict[int, list[tuple[Sequence[int], int]]] = {}
        for ids, answer in wordings:
            if len(ids) == at:
                raise IndistinctError(answer, min(answers - {answer}))
            ways.setdefault(ids[at], []).append((ids, answer))
        if len(ways) == 1:
            self._grow(wordings, at + 1, path)
            return
        fork = len(self.forks)
        self.forks.append(Fork(tuple(wordings[0][0][:at]), tuple(ways)))
        for token_id, below in ways.items():
            self._grow(below, at + 1, [*path, (fork, token_id)])


def tree_of(
    candidates: Sequence[Sequence[str]], lead: str, encode: Callable[[str], list[int]], end_ids: Sequence[int]
) -> AnswerTree:
    """The tree of `Request.candidates` behind `lead`.

    `encode`: text to token ids; `end_ids`: the tokens that may end an answer. A candidate that another one begins with
    (work, work and study) is told from it by what follows: the end, an explanation, or another label. Raises:
    ConfigError where the tokens do not tell.
    """
    answers = []
    for whole, *longer in candidates:
        ids = encode(lead + whole)
        answers.append([*([*ids, end_id] for end_id in end_ids), *(encode(lead + each) for each in longer)])
    try:
        return AnswerTree(answers)
    except IndistinctError as error:
        one, other = (candidates[number][0] for number in error.pair)
        raise ConfigError(
            f"label_scores = forced: {one!r} and {other!r} cannot be told apart by the model's tokens; leave "
            "label_scores out, or change the names of these labels; and name another output folder"
        ) from None


def _normalised(fork: Fork, logprobs: Mapping[int, float]) -> dict[int, float]:
    most = max(logprobs[token_id] for token_id in fork.next_ids)
    weights = {token_id: math.exp(logprobs[token_id] - most) for token_id in fork.next_ids}
    total = math.fsum(weights.values())
    return {token_id: weight / total for token_id, weight in weights.items()}
