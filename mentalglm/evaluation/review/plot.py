"""How often each score was given, as SVG."""

import io
from collections.abc import Mapping
from typing import Any

from mentalglm.evaluation.review.dimensions import DIMENSIONS, OVERALL, SCORES

_COLOURS = ("#b3541e", "#e3b27a", "#9cc7bf", "#1c6b63")
"""Of the scores 0 to 3; the two middle ones light, so that a reader without colours sees which side is which."""
_INK = "#22302f"


def distributions(result: Mapping[str, Any]) -> bytes:
    """A panel for each dimension with a bar for each group: its shares of the scores. The last panel shows the mean of
    the overall score with its interval. `result`: what `review.json` holds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    groups = [each for each in result["groups"] if each["scores"][OVERALL]["num_ratings"]]
    names = [_name(each) for each in groups]
    with rc_context({"svg.hashsalt": result["sample"], "font.size": 9, "text.color": _INK}):
        figure = Figure(figsize=(13, 1.6 + 0.42 * len(groups)), layout="constrained")
        panels = figure.subplots(1, len(DIMENSIONS) + 1, sharey=True, squeeze=False)[0]
        for panel, dimension in zip(panels, DIMENSIONS, strict=False):
            for row, group in enumerate(groups):
                _bar(panel, row, group["scores"][dimension])
            panel.set(title=dimension.capitalize(), xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "50", "100 %"])
        for row, group in enumerate(groups):
            _point(panels[-1], row, group["scores"][OVERALL])
        panels[-1].set(title="Overall: mean, 95 % interval", xlim=(SCORES[0] - 0.1, SCORES[-1] + 0.1), xticks=SCORES)
        panels[-1].grid(axis="x", color="#dddddd")
        panels[-1].set_axisbelow(True)
        for panel in panels:
            panel.spines[["top", "right", "left"]].set_visible(False)
            panel.tick_params(left=False)
        panels[0].set(yticks=range(len(groups)), yticklabels=names, ylim=(len(groups) - 0.5, -0.5))
        handles = [panels[0].barh(0, 0, color=colour) for colour in _COLOURS]
        figure.legend(handles, [str(each) for each in SCORES], loc="outside lower center", ncols=4, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _name(group: Mapping[str, Any]) -> str:
    parts = [part.replace("_", " ") for part in (group["task"], group["run"]) if part]
    return f"{', '.join(parts) or 'all'} ({group['num_items']})"


def _bar(panel: Any, row: int, scores: Mapping[str, Any]) -> None:
    if not scores["num_ratings"]:
        return
    start = 0.0
    for score, colour in zip(SCORES, _COLOURS, strict=True):
        count = scores["distribution"][str(score)]
        share = count / scores["num_ratings"]
        panel.barh(row, share, left=start, color=colour, height=0.7)
        if share > 0.08:
            ink = "white" if score in (SCORES[0], SCORES[-1]) else _INK
            panel.text(start + share / 2, row, str(count), ha="center", va="center", color=ink, fontsize=8)
        start += share
    panel.text(1.01, row, f"{scores['mean']:.2f}", ha="left", va="center", fontsize=8, clip_on=False)


def _point(panel: Any, row: int, scores: Mapping[str, Any]) -> None:
    if ends := scores["ci95"]:
        panel.plot(ends, [row, row], color=_COLOURS[-1], linewidth=2)
    panel.plot(scores["mean"], row, "o", color=_COLOURS[-1], markersize=6)
    panel.text(scores["mean"], row - 0.25, f"{scores['mean']:.2f}", ha="center", va="bottom", fontsize=8)
