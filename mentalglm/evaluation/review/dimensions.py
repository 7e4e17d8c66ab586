"""What experts rate."""

from typing import Literal

Dimension = Literal["consistency", "reliability", "professionality"]

DIMENSIONS: tuple[Dimension, ...] = ("consistency", "reliability", "professionality")
"""Of the paper's section 4.2.2. Their wording, and what each score stands for, is in words.yaml."""
OVERALL = "overall"
"""Mean of the three scores that one expert gave to one explanation."""
SCORES = (0, 1, 2, 3)
"""Higher is better."""
