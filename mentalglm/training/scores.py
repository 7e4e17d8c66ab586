"""What a validation has found, in the words that people read."""

from collections.abc import Mapping

_WORDS = {"score": "mean F1"}  # files keep the shorter word


def scores_by_name(scores: Mapping[str, float]) -> dict[str, float]:
    """Task -> headline metric (F1), and their mean."""
    return {_WORDS.get(name, name): value for name, value in scores.items()}


def describe_scores(scores: Mapping[str, float]) -> str:
    """The same in a line."""
    return "F1 " + ", ".join(f"{name} {value:.4f}" for name, value in scores_by_name(scores).items())
