"""Texts without the names of a task's labels: what is left says whether they carry the label or only repeat it."""

import re

from mentalglm.tasks.task import Task
from mentalglm.tasks.text import fold
from mentalglm.tasks.vocabulary import QUOTES, vocabulary_of

LABEL_MASK = "□"
"""In the place of a name: one character of no language, which the vocabularies of Chinese encoders have."""
_SKIPPED = re.compile(rf"[{QUOTES}]|(?<=,)\s+(?=[a-z])|\s+(?=\()")
"""What may stand inside a name and does not count: quotation marks, blanks at commas and brackets."""


def mask_labels(task: Task, text: str) -> str:
    """`text` with `LABEL_MASK` in the place of every name of a label: slugs, Chinese and English names, aliases, those
    of parents and of related label sets, in any width, case and script, also with quotation marks inside.

    Names that are everyday words as well (放大, 生活, 高) go wherever they stand, so that a classifier of explanations
    is told too little rather than too much. What the labels are kinds of (认知歪曲) stays: it tells none from another.
    """
    folded = fold(text)
    skipped = {place for match in _SKIPPED.finditer(folded) for place in range(*match.span())}
    places = [place for place in range(len(folded)) if place not in skipped]
    bare = "".join(folded[place] for place in places)
    parts: list[str] = []
    end = 0
    for token in vocabulary_of(task).tokens(bare):
        if token.entry.kind != "topic":
            parts += [text[end : places[token.start]], LABEL_MASK]
            end = places[token.end - 1] + 1
    return "".join([*parts, text[end:]])
