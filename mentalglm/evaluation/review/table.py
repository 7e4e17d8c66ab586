"""The result of a review as people read it: Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mentalglm.evaluation.review.dimensions import DIMENSIONS, OVERALL, SCORES
from mentalglm.evaluation.table import markdown_table

_STATISTICS = {
    "weighted_kappa": "weighted kappa",
    "icc_single": "ICC, one expert",
    "icc_average": "ICC, mean of experts",
    "krippendorff_alpha": "Krippendorff's alpha",
}


def markdown(result: Mapping[str, Any]) -> str:
    """What `review.json` holds, as `review.md`."""
    blocks = [
        [f"# Expert review of {result['num_items']} explanations of {result['num_posts']} posts"],
        list(_experts(result)),
        ["## Scores", "", "From 0 to 3: mean with its 95 % interval over posts, median.", "", *_scores(result)],
        ["![Scores](scores.svg)"],
        *([["## Runs compared", "", *_comparisons(result)]] if result["comparisons"] else []),
        ["## Agreement", "", *_agreement(result)],
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _experts(result: Mapping[str, Any]) -> Iterator[str]:
    header = ["expert", "complete", "partial", "comments", *DIMENSIONS, OVERALL, "saved"]
    rows = [
        [name, each["num_complete"], each["num_partial"], each["num_comments"]]
        + [_number(each["mean"][dimension]) for dimension in (*DIMENSIONS, OVERALL)]
        + [each["saved_at"] + (", edited since" if each["was_edited"] else "")]
        for name, each in result["experts"].items()
    ]
    yield from markdown_table(header, rows)
    if result["experts_without_file"]:
        yield from ("", f"Without a file: {', '.join(result['experts_without_file'])}.")


def _scores(result: Mapping[str, Any]) -> Iterator[str]:
    header = ["task", "run", "items", *DIMENSIONS, OVERALL]
    rows = [
        [each["task"] or "all", each["run"] or "all", each["num_items"]]
        + [_described(each["scores"][name]) for name in (*DIMENSIONS, OVERALL)]
        for each in result["groups"]
    ]
    yield from markdown_table(header, rows)
    yield ""
    counted = [
        [each["run"] or "all", name] + [each["scores"][name]["distribution"][str(score)] for score in SCORES]
        for each in result["groups"]
        for name in DIMENSIONS
        if each["task"] is None
    ]
    yield from markdown_table(["run", "dimension", *(f"times {score}" for score in SCORES)], counted)


def _comparisons(result: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        [each["run"], each["minus"], *(_difference(each["scores"][name]) for name in (*DIMENSIONS, OVERALL))]
        for each in result["comparisons"]
    ]
    yield from markdown_table(["run", "minus", *DIMENSIONS, OVERALL], rows)


def _agreement(result: Mapping[str, Any]) -> Iterator[str]:
    if len(result["experts"]) < 2:
        yield "Of one expert there is none to tell."
        return
    yield (
        "Quadratic-weighted kappa (Cohen, 1968; mean over the pairs of experts), ICC of a two-way random model with "
        "absolute agreement (Shrout and Fleiss, 1979), Krippendorff's alpha (ordinal; interval for overall), with 95 % "
        "intervals over posts. n: items that count."
    )
    yield ""
    rows, reasons = [], []
    for group in result["groups"]:
        where = [group["task"] or "all", group["run"] or "all"]
        for name in (*DIMENSIONS, OVERALL):
            found = group["agreement"][name]
            rows.append([*where, name, *(_statistic(found.get(key)) for key in _STATISTICS)])
            reasons += [
                f"- {', '.join(where)}, {name}, {told}: {found[key]['reason']}"
                for key, told in _STATISTICS.items()
                if key in found and found[key]["reason"]
            ]
    yield from markdown_table(["task", "run", "dimension", *_STATISTICS.values()], rows)
    if reasons:
        yield from ("", "Without a figure, or without an interval:", "", *reasons)


def _described(scores: Mapping[str, Any]) -> str:
    if not scores["num_ratings"]:
        return ""
    return f"{_number(scores['mean'])}{_ends(scores['ci95'])}, {scores['quartiles'][1]:.3g}"


def _difference(scores: Mapping[str, Any]) -> str:
    return "" if scores["difference"] is None else f"{scores['difference']:+.2f}{_ends(scores['ci95'])}"


def _statistic(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return ""
    return f"{found['value']:.3f}{_ends(found['ci95'])}, n = {found['num_items']}"


def _ends(ends: Sequence[float] | None) -> str:
    return f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
