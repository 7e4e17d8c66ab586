"""The files that experts' pages have saved: read, and checked against the sample before anything is computed."""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mentalglm import storage
from mentalglm.corpus.text import replace_surrogates
from mentalglm.errors import InputError
from mentalglm.evaluation.review.dimensions import DIMENSIONS, SCORES, Dimension
from mentalglm.evaluation.review.page import FORMAT


@dataclass(frozen=True, slots=True)
class Rating:
    """What one expert said of one explanation."""

    scores: Mapping[Dimension, int]
    """Of the dimensions that were rated."""
    comment: str

    @property
    def is_complete(self) -> bool:
        return len(self.scores) == len(DIMENSIONS)


@dataclass(frozen=True, slots=True)
class RatingFile:
    """What one expert has rated."""

    uri: str
    expert: str
    saved_at: str
    """ISO 8601, to the second."""
    ratings: Mapping[str, Rating]
    """By item id; items that were not touched are not in it."""
    was_edited: bool
    """It is not as the page has saved it."""

    def num_complete(self) -> int:
        """Items with a score in every dimension."""
        return sum(rating.is_complete for rating in self.ratings.values())


def read_rating_files(
    uris: Sequence[str], key: Mapping[str, Any], *, partial: bool, edited: bool
) -> dict[str, RatingFile]:
    """Expert -> file, in the order of the key's experts.

    `partial`: take files in which items or scores are missing, and do without those of experts who sent none.
    `edited`: take files that were changed after the page had saved them.
    Raises: InputError that names the file and what is wrong: no file of a page, of another sample, of an expert who is
    not in the review, two of one expert, unknown items, scores out of range.
    """
    found: dict[str, RatingFile] = {}
    for uri in uris:
        file = _read(uri, key)
        if file.expert in found:
            raise InputError(
                f"{uri}: {file.expert} has another file, {found[file.expert].uri}; keep the one that counts (saved "
                f"{file.saved_at} and {found[file.expert].saved_at})"
            )
        if file.was_edited and not edited:
            raise InputError(
                f"{uri}: has been changed since the page saved it; have it saved again, or accept it with --edited"
            )
        num_items, num_complete = len(key["items"]), file.num_complete()
        if num_complete < num_items and not partial:
            raise InputError(
                f"{uri}: {num_complete} of {num_items} items have all their scores; have it finished, or take it as it "
                "is with --partial"
            )
        found[file.expert] = file
    if not found:
        raise InputError("ratings: there are none; name the files, or put them into the folder ratings of the review")
    missing = [expert for expert in key["experts"] if expert not in found]
    if missing and not partial:
        raise InputError(f"ratings: no file of {', '.join(missing)}; add it, or do without with --partial")
    return {expert: found[expert] for expert in key["experts"] if expert in found}


def checksum(sample: str, expert: str, saved_at: str, ratings: Mapping[str, Mapping[str, Any]]) -> str:
    """CRC-32 (8 hex digits) over the content in one spelling; page.js computes the same. It tells a change by hand, not
    one by somebody who wants to hide it."""
    rows = [
        [item, *(ratings[item].get(name) for name in DIMENSIONS), ratings[item].get("comment") or ""]
        for item in sorted(ratings)
    ]
    spelled = json.dumps([sample, expert, saved_at, rows], ensure_ascii=False, separators=(",", ":"))
    return f"{zlib.crc32(replace_surrogates(spelled).encode()):08x}"


def _read(uri: str, key: Mapping[str, Any]) -> RatingFile:
    data = storage.read_bytes(uri)
    if data is None:
        raise InputError(f"{uri}: no such file; name a file that a page has saved")
    try:
        content = json.loads(data.decode("utf-8-sig"))
        if content["format"] != FORMAT:
            raise ValueError
        sample, expert, saved_at = (str(content[name]) for name in ("sample", "expert", "saved_at"))
        given: dict[str, dict[str, Any]] = content["ratings"]
        if not isinstance(given, dict) or not all(isinstance(each, dict) for each in given.values()):
            raise TypeError
        was_edited = checksum(sample, expert, saved_at, given) != content.get("checksum")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{uri}: is no file of ratings that a page has saved; name one") from None
    if sample != key["sample"]:
        raise InputError(f"{uri}: is of another sample ({sample[:12]}, not {key['sample'][:12]}); name its own review")
    if expert not in key["experts"]:
        raise InputError(f"{uri}: expert = {expert[:40]!r} is none of this review; it has {', '.join(key['experts'])}")
    try:
        saved = datetime.fromisoformat(saved_at).isoformat(timespec="seconds")
    except ValueError:
        raise InputError(
            f"{uri}: saved_at = {saved_at[:40]!r} is no date and time; give one like 2026-01-31T12:00:00Z, or have the "
            "file saved again"
        ) from None
    problems = list(_problems(given, {item["id"] for item in key["items"]}))
    if problems:
        raise InputError(f"{uri}: {problems[0]}" + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))
    ratings = {
        item: Rating(
            {name: each[name] for name in DIMENSIONS if each.get(name) is not None},
            replace_surrogates(each.get("comment") or ""),
        )
        for item, each in given.items()
    }
    return RatingFile(uri, expert, saved, ratings, was_edited)


def _problems(given: Mapping[str, Mapping[str, Any]], known: set[str]) -> Iterator[str]:
    """What stands in the ratings that a page does not write. Values are not quoted: they may be a comment's."""
    for item, rating in given.items():
        if item not in known:
            yield f"{item[:20]!r} is no item of this review; remove it"
        for name, value in rating.items():
            if name == "comment":
                if not isinstance(value, str):
                    yield f"{item}.comment is no text; mend it"
            elif name not in DIMENSIONS:
                yield f"{item}.{name[:20]} is no dimension; use {', '.join(DIMENSIONS)}"
            elif value is not None and (isinstance(value, bool) or value not in SCORES):
                yield f"{item}.{name} is out of range; use a whole number from {SCORES[0]} to {SCORES[-1]}, or null"
