"""The reliability diagram of a probability, as SVG."""

from collections.abc import Mapping
from html import escape
from typing import Any

_SIZE, _MARGIN = 320, 48


def reliability_diagram(slug: str, calibration: Mapping[str, Any]) -> str:
    """Share of positive rows over mean probability, a disc for each tenth of it, larger for more rows; the diagonal is
    what a probability promises. `calibration`: that of `metrics.json`."""
    bins = [each for each in calibration["bins"] if each]
    most = max(each["num_rows"] for each in bins)
    side = _SIZE + 2 * _MARGIN
    discs = []
    for each in bins:
        x, y = _at(each["mean_probability"]), side - _at(each["share_positive"])
        radius = 3 + 9 * (each["num_rows"] / most) ** 0.5
        told = f"{each['num_rows']} rows: {each['mean_probability']:.3f}, {each['share_positive']:.3f}"
        disc = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="#2a6f97" fill-opacity="0.7">'
        discs.append(f"{disc}<title>{told}</title></circle>")
    low, high = _at(0), _at(1)
    title = f"{escape(slug)}: {calibration['num_rows']} rows, ECE {calibration['ece']:.3f}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}" font-family="sans-serif" '
            'font-size="12" text-anchor="middle">',
            f'<rect width="{side}" height="{side}" fill="white"/>',
            f'<rect x="{low}" y="{low}" width="{_SIZE}" height="{_SIZE}" fill="none" stroke="#999"/>',
            f'<line x1="{low}" y1="{high}" x2="{high}" y2="{low}" stroke="#999" stroke-dasharray="4"/>',
            *(f'<text x="{_at(tick)}" y="{high + 16}">{tick}</text>' for tick in (0, 0.5, 1)),
            *(f'<text x="{low - 16}" y="{side - _at(tick) + 4}">{tick}</text>' for tick in (0, 0.5, 1)),
            *discs,
            f'<text x="{side / 2}" y="{low - 16}">{title}</text>',
            f'<text x="{side / 2}" y="{side - 12}">mean probability</text>',
            f'<text transform="translate(14 {side / 2}) rotate(-90)">share of positive rows</text>',
            "</svg>",
            "",
        ]
    )


def _at(share: float) -> float:
    return _MARGIN + share * _SIZE
