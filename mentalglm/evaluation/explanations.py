"""What can be counted of explanations: how many there are, how long, and whether what they quote stands in the post."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mentalglm.config import PostsConfig
from mentalglm.corpus import normalise
from mentalglm.evaluation.bootstrap import interval, resampled_sums
from mentalglm.evaluation.metrics import Integers
from mentalglm.evaluation.posts import read_posts
from mentalglm.evaluation.predictions import Predictions
from mentalglm.tasks import Task
from mentalglm.tasks.text import fold
from mentalglm.tasks.vocabulary import vocabulary_of

# Pairs of marks; what stands inside the outer ones is the quote. Some writers open and close with the same curly mark;
# others forget to close, so that an opening mark with one closing mark of its own behind it begins a new quote. A right
# single mark between letters is an apostrophe. The straight one is left out: it mostly is one. Marks of titles (《》)
# quote nothing.
_QUOTE = re.compile(
    r"“([^“”]+)(?:”|“(?![^“”]+”(?![^“”]+”)))|”([^“”]+)”|「([^「」]+)」|『([^『』]+)』|〝([^〝〞〟]+)[〞〟]"
    r"|\"([^\"\n]+)\"|＂([^＂\n]+)＂|«([^«»]+)»|‹([^‹›]+)›"
    r"|(?<![A-Za-z])‘((?:[^‘’]|(?<=[A-Za-z])’(?=[A-Za-z]))+)’"
)
_LEFT_OUT = re.compile(r"[\[(](?:[…⋯]+|\.{2,})[\])]|[…⋯]+|\.{3,}|。{2,}")
"""What stands for words of the post that a quote leaves out; folded."""
_SPACE_AND_QUOTES = re.compile(r"[\s\"'“”‘’「」『』〝〞〟«»‹›]+")
_OUTER_MARKS = " ,.;:!?~、。-—_"
_PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True, slots=True)
class QuoteCount:
    """The quotes of one explanation."""

    num_quotes: int
    """Those that say what the post says: names of labels and topics of the task are not among them."""
    num_not_in_post: int
    num_names: int
    """Names of labels and topics in quotation marks."""


def quotes(explanation: str) -> list[str]:
    """What stands in quotation marks, Chinese or Western, from left to right; of nested ones the outer."""
    return [quote for match in _QUOTE.finditer(explanation) if (quote := next(filter(None, match.groups()))).strip()]


def count_quotes(task: Task, explanation: str, post: str) -> QuoteCount:
    """Looks up each quote in the post. Both are normalised as posts are; width, case, script, white space and inner
    quotation marks do not count, nor do punctuation marks at the ends of a quote; one of nothing else is no quote.
    Where a quote has an ellipsis, its parts must come in their order."""
    vocabulary = vocabulary_of(task)
    bare_post = _bare(post)
    num_quotes = num_missing = num_names = 0
    for quote in quotes(normalise(explanation)[0]):
        if vocabulary.entry_of(quote) is not None:
            num_names += 1
        elif parts := _parts(quote):
            num_quotes += 1
            num_missing += not _are_in(parts, bare_post)
    return QuoteCount(num_quotes, num_missing, num_names)


def count_explanations(
    task: Task,
    predictions: Predictions,
    posts: PostsConfig | None,
    *,
    clusters: Mapping[str, str] | None = None,
    num_bootstrap: int,
    seed: int,
) -> dict[str, Any] | None:
    """What `metrics.json` holds under `explanations`, of the predictions that are ok; None where they have no column of
    that name. Quotes are counted where the posts can be had: see `read_posts`. `clusters`: post id -> what is resampled
    together; None: each post is by itself.

    Raises: InputError where `posts` cannot be read.
    """
    if "explanation" not in predictions.table.column_names:
        return None
    table = predictions.table.filter(pc.equal(predictions.table["status"].cast(pa.string()), "ok"))
    length = pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(table["explanation"].cast(pa.string()))), 0)
    explained = table.filter(pc.greater(length, 0))
    lengths = np.asarray(length.to_numpy())
    lengths = lengths[lengths > 0]
    found: dict[str, Any] = {
        "num_ok": len(table),
        "num_explained": len(explained),
        "share_empty": 1 - len(explained) / len(table) if len(table) else None,
        "num_characters": _lengths(lengths) if len(lengths) else None,
        "quotes": None,
    }
    texts = read_posts(posts, replace(predictions, table=explained)) if len(explained) else None
    if texts is not None:
        found["quotes"] = _quotes(task, explained, texts, clusters, num_bootstrap, seed)
    return found


def _quotes(
    task: Task,
    explained: pa.Table,
    texts: Mapping[str, str],
    clusters: Mapping[str, str] | None,
    num_bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    ids, counts = [], []
    for post_id, counted in _counts(task, explained, texts):
        ids.append(post_id)
        counts.append(counted)
    sums = np.array([(each.num_quotes, each.num_not_in_post, each.num_names) for each in counts]).reshape(-1, 3)
    num_quotes, num_missing, num_names = (int(each) for each in sums.sum(axis=0))
    share_missing, ends = None, None
    if num_quotes:
        share_missing = num_missing / num_quotes
        if num_bootstrap:
            numbers = np.unique([clusters[each] for each in ids], return_inverse=True)[1] if clusters else None
            drawn = resampled_sums(sums[:, :2].astype(np.int64), numbers, num_bootstrap, seed)
            ends = interval(drawn[:, 1] / np.maximum(drawn[:, 0], 1))
    return {
        "num_checked": len(counts),
        "num_without_post": len(explained) - len(counts),
        "num_quotes": num_quotes,
        "num_not_in_post": num_missing,
        "share_not_in_post": share_missing,
        "ci95": list(ends) if ends else None,
        "num_with_quote": int((sums[:, 0] > 0).sum()),
        "num_with_quote_not_in_post": int((sums[:, 1] > 0).sum()),
        "num_names_of_labels": num_names,
    }


def _counts(task: Task, explained: pa.Table, texts: Mapping[str, str]) -> Iterator[tuple[str, QuoteCount]]:
    ids = explained["post_id"].cast(pa.string()).to_pylist()
    for post_id, explanation in zip(ids, explained["explanation"].cast(pa.string()).to_pylist(), strict=True):
        if post_id in texts:
            yield post_id, count_quotes(task, explanation, texts[post_id])


def _lengths(lengths: Integers) -> dict[str, float]:
    ends = zip(_PERCENTILES, np.percentile(lengths, _PERCENTILES), strict=True)
    return {"mean": float(lengths.mean()), **{f"p{percent:02d}": float(value) for percent, value in ends}}


def _parts(quote: str) -> list[str]:
    """What the quote says, without what it leaves out; none where it is punctuation alone."""
    return [bare for part in _LEFT_OUT.split(fold(quote)) if (bare := _bare(part).strip(_OUTER_MARKS))]


def _are_in(parts: Sequence[str], bare_post: str) -> bool:
    position = 0
    for part in parts:
        position = bare_post.find(part, position)
        if position < 0:
            return False
        position += len(part)
    return True


def _bare(text: str) -> str:
    return _SPACE_AND_QUOTES.sub("", fold(text))
