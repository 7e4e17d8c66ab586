"""Lines and points as SVG that takes its colours and fonts from the page, so that it is right in the dark and in print.

matplotlib draws with placeholder colours, which become CSS variables; text stays text. Nothing that anybody has named
is drawn: names stand in the page around a chart, where they are escaped.
"""

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

SERIES = tuple(f"#00000{number}" for number in range(1, 7))
_INK, _MUTED, _LINE = "#0000a1", "#0000a2", "#0000a3"
_VARIABLES = {
    **{color: f"var(--series-{number})" for number, color in enumerate(SERIES, 1)},
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mentalglm",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.labelsize": 11,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.6,
    "text.color": _INK,
    "axes.axisbelow": True,
}
_MARKERS = "osD^vP"


@dataclass(frozen=True, slots=True)
class Curve:
    """What one side has over time: (day, low, high); a range where low < high, a gap where None."""

    points: Sequence[tuple[date, float, float] | None]


def over_time(curves: Sequence[Curve], told: str, *, is_share: bool, width: int = 300, height: int = 140) -> Markup:
    """Lines with points; a bar from low to high where a count is told as a range. `told`: what a reader who does not
    see it is told."""
    with rc_context(_STYLE):
        figure, axes = _axes(width, height)
        for number, curve in enumerate(curves):
            color = SERIES[number % len(SERIES)]
            known = [point for point in curve.points if point is not None]
            # Beside each other: where two sides are the same, neither hides the other.
            shift = (number - (len(curves) - 1) / 2) * 0.16 * _step(curve)
            xs = [float(date2num(day)) + shift for day, _, _ in known]
            exact = [low if low == high else float("nan") for _, low, high in known]
            axes.plot(xs, exact, color=color, marker=_MARKERS[number % len(_MARKERS)])
            ranges = [(x, low, high) for x, (_, low, high) in zip(xs, known, strict=True) if low != high]
            if ranges:
                at, lows, highs = zip(*ranges, strict=True)
                axes.vlines(at, lows, highs, color=color, linewidth=5, alpha=0.35)
        locator = AutoDateLocator(minticks=2, maxticks=4 if width < 400 else 8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
        axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=not is_share))
        if is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if axes.get_ylim()[1] >= 0.04 else 1))
        return _svg(figure, told)


def lines(
    curves: Sequence[Sequence[tuple[float, float]]],
    told: str,
    *,
    x: str,
    is_share: bool = False,
    is_log: bool = False,
    x_max: float | None = None,
    marks: Sequence[float] = (),
    width: int = 420,
    height: int = 210,
) -> Markup:
    """Curves of (x, y), each in the colour of its number. `marks`: x of vertical lines."""
    with rc_context(_STYLE):
        figure, axes = _axes(width, height)
        for number, curve in enumerate(curves):
            if curve:
                xs, ys = zip(*curve, strict=True)
                marker = _MARKERS[number % len(_MARKERS)] if len(curve) <= 40 else None
                axes.plot(xs, ys, color=SERIES[number % len(SERIES)], marker=marker)
        for mark in marks:
            axes.axvline(mark, color=_MUTED, linestyle=(0, (3, 3)), linewidth=1)
        if is_log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        if is_share:
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if x_max is not None:
            axes.set_xlim(0, 1.02 * x_max)
        axes.set_xlabel(x)
        return _svg(figure, told)


def reliability(points: Sequence[tuple[float, float, float, float]], told: str) -> Markup:
    """(mean probability, lowest and highest share of positive rows, share of all rows); the diagonal is what a
    probability promises."""
    with rc_context(_STYLE | {"axes.grid.axis": "both"}):
        figure, axes = _axes(300, 290)
        axes.plot([0, 1], [0, 1], color=_MUTED, linestyle=(0, (3, 3)), linewidth=1)
        for mean, low, high, weight in points:
            size = 5 + 11 * weight**0.5
            if low == high:
                axes.plot([mean], [low], color=SERIES[0], marker="o", markersize=size, alpha=0.75, clip_on=False)
            else:
                axes.vlines([mean], [low], [high], color=SERIES[0], linewidth=size, alpha=0.55)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean probability", ylabel="share of positive rows")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        return _svg(figure, told)


def _step(curve: Curve) -> float:
    """Days from one bin to the next, on average."""
    known = [point[0] for point in curve.points if point is not None]
    return (known[-1] - known[0]).days / (len(known) - 1) if len(known) > 1 else 1.0


def _axes(width: int, height: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.tick_params(length=0)
    return figure, axes


def _svg(figure: Figure, told: str) -> Markup:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # would be the whole page's; the page has the same
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    # Names that nothing refers to would be there once for each chart.
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    prefix = hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(
        r"font: ([\d.]+px) [^;\"]*|font-family: [^;\"]*;? ?", lambda m: f"font-size: {m[1]}" if m[1] else "", text
    )
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    width, height = (f"{value * 72:g}" for value in figure.get_size_inches())
    start = (
        f'<svg role="img" aria-label="{escape(told)}" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    )
    body = re.sub(r"\s*\n\s*", "\n", text[text.index(">") + 1 :])
    return Markup(start + body)  # noqa: S704 - matplotlib's own, of numbers alone
