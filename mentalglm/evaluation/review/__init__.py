"""Experts rate explanations (paper, sections 4.2.2 and 4.5): pages out, ratings in, agreement. No Ray, no model."""

from mentalglm.evaluation.review.export import export
from mentalglm.evaluation.review.result import import_ratings
from mentalglm.evaluation.review.table import markdown

__all__ = ["export", "import_ratings", "markdown"]
