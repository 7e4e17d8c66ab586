"""A filled table for people (Markdown, LaTeX, HTML) and for programs (Parquet)."""

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from string import ascii_lowercase

import pyarrow as pa
import pyarrow.parquet as pq

from mentalglm.evaluation.paper.measured import Cell, Difference, FilledTable, Source
from mentalglm.evaluation.paper.published import Row
from mentalglm.manifest import code_version

_METRICS = {"f1": "F1", "precision": "P", "recall": "R"}
_EMPTY = "–"
LEGEND = (
    "Figures in per cent. Quoted: as the paper prints them. Measured: by runs of this system, answers read "
    f"leniently, with 95 % bootstrap intervals over posts. {_EMPTY}: not printed, or not measured."
)
_CELLS = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("row", pa.string(), nullable=False),
        pa.field("column", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("run", pa.string()),
        pa.field("num_rows", pa.int64()),
        pa.field("place", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Marked:
    """A text, and which notes it has."""

    text: str
    marks: str = ""
    """`a,c`."""


@dataclass(frozen=True, slots=True)
class Line:
    """What one line of the table shows."""

    title: Marked
    """Empty where the line above is of the same row."""
    parameters: str
    source: Source
    figures: tuple[Marked, ...]
    """One for each leaf and metric."""
    intervals: tuple[str, ...]
    """`[low, high]`, or nothing, of each figure."""


@dataclass(frozen=True)
class Sheet:
    """The table as lines of text, before any markup."""

    filled: FilledTable

    @property
    def title(self) -> str:
        """Name and subject."""
        return f"{self.filled.table.place.partition(',')[0]}. {self.filled.table.title}"

    @property
    def origin(self) -> str:
        """Where the quoted figures are from."""
        return f"{self.filled.table.publication}, {self.filled.table.place}"

    @property
    def leaves(self) -> list[str]:
        """Titles."""
        return [leaf.title for leaf in self.filled.table.leaves.values()]

    @property
    def metrics(self) -> list[str]:
        """Of each leaf."""
        return [_METRICS[metric] for metric in self.filled.table.metrics]

    @property
    def has_parameters(self) -> bool:
        """Whether the paper tells sizes."""
        return any(row.parameters for row in self.filled.table.rows.values())

    @cached_property
    def notes(self) -> list[str]:
        """What the marks a, b, ... of printed figures stand for."""
        return [note.text for note in self.filled.table.notes]

    @cached_property
    def remarks(self) -> list[str]:
        """About what was measured, and what was not."""
        rows = self.filled.table.rows
        missing = [row.title for name, row in rows.items() if not self.filled.is_measured(name)]
        said = "No row is measured." if len(missing) == len(rows) else f"Not measured: {'; '.join(missing)}."
        return [*self.filled.measured_notes(), *([said] if missing else [])]

    def groups(self) -> Iterator[tuple[str, list[Line]]]:
        """(heading, lines). A row has a line for each source that it has figures of; without any, one that is empty."""
        for group in self.filled.table.groups:
            yield group.title, [line for name, row in group.rows.items() for line in self._lines(name, row)]

    def _lines(self, name: str, row: Row) -> Iterator[Line]:
        is_measured = self.filled.is_measured(name) or not row.quoted
        sources: list[Source] = ["quoted", "measured"]
        has = {"quoted": bool(row.quoted), "measured": is_measured}
        for number, source in enumerate(each for each in sources if has[each]):
            cells = list(self._cells(name, source))
            yield Line(
                title=Marked("") if number else self._title(name),
                parameters="" if number else row.parameters,
                source=source,
                figures=tuple(self._figure(cell) for cell in cells),
                intervals=tuple(_interval(cell.low, cell.high) for cell in cells),
            )

    def measurements(self) -> list[tuple[str, ...]]:
        """(row, column, n, parsed, run) of each evaluation."""
        table = self.filled.table
        return [
            (
                table.rows[each.row].title,
                table.columns[each.column].title,
                str(each.metrics["n"]),
                str(each.metrics["num_parsed"]),
                each.run,
            )
            for each in self.filled.measurements
        ]

    def differences(self) -> list[tuple[str, ...]]:
        """As `DIFFERENCES` has it."""
        table = self.filled.table
        return [
            (table.rows[each.row].title, table.leaves[each.column].title, each.against, *_told(each))
            for each in self.filled.differences
        ]

    def _cells(self, row: str, source: Source) -> Iterator[Cell]:
        for leaf in self.filled.table.leaves.values():
            yield from self.filled.cells_of(row, leaf, source)

    def _title(self, row: str) -> Marked:
        notes = self.filled.table.notes
        return Marked(
            self.filled.table.rows[row].title, _marks(not note.columns and row in note.rows for note in notes)
        )

    def _figure(self, cell: Cell) -> Marked:
        if cell.value is None:
            return Marked(_EMPTY)
        is_quoted, notes = cell.source == "quoted", self.filled.table.notes
        marks = _marks(is_quoted and cell.row in note.rows and cell.column in note.columns for note in notes)
        return Marked(f"{cell.value:.2f}", marks)


MEASUREMENTS = ("row", "column", "n", "parsed", "run")
DIFFERENCES = (
    "row",
    "column",
    "minus",
    "F1 difference",
    "p, bootstrap",
    "Holm",
    "p, McNemar",
    "Holm",
)


def render(filled: FilledTable) -> dict[str, bytes]:
    """File name -> content."""
    sheet = Sheet(filled)
    name = Path(filled.name).stem
    files = {
        f"{name}.md": markdown(sheet).encode(),
        f"{name}.tex": latex(sheet).encode(),
        f"{name}.html": html(sheet).encode(),
        f"{name}.parquet": parquet(filled),
    }
    if filled.differences:
        files[f"{name}.differences.parquet"] = _to_parquet(
            pa.Table.from_pylist([{"table": name, **asdict(each)} for each in filled.differences])
        )
    return files


def parquet(filled: FilledTable) -> bytes:
    """One row for each cell, quoted and measured, empty ones too."""
    name = Path(filled.name).stem
    rows = [
        {"table": name, **asdict(cell), "place": filled.table.place if cell.source == "quoted" else None}
        for cell in filled.cells()
    ]
    return _to_parquet(pa.Table.from_pylist(rows, _CELLS))


def markdown(sheet: Sheet) -> str:
    """GitHub's Markdown."""

    def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        lines = [header, *rows]
        shown = [f"| {' | '.join(_one_cell(cell) for cell in line)} |" for line in lines]
        return [shown[0], f"|{'---|' * len(header)}", *shown[1:]]

    columns = [f"{leaf}: {metric}" for leaf in sheet.leaves for metric in sheet.metrics]
    sizes = ["parameters"] if sheet.has_parameters else []
    body = []
    for heading, lines in sheet.groups():
        body.append([f"**{heading}**", *[""] * (len(sizes) + 1 + len(columns))])
        for line in lines:
            cells = [
                f"{_plain(figure)} {interval}".strip()
                for figure, interval in zip(line.figures, line.intervals, strict=True)
            ]
            body.append([_plain(line.title), *([line.parameters] if sizes else []), line.source, *cells])
    blocks = [
        [f"## {sheet.title}"],
        [f"{LEGEND} Quoted from {sheet.origin}."],
        table(["method", *sizes, "source", *columns], body),
        [f"- {mark}: {text}" for mark, text in _marked(sheet.notes)],
        [f"- {text}" for text in sheet.remarks],
        table(MEASUREMENTS, sheet.measurements()) if sheet.filled.measurements else [],
        table(DIFFERENCES, sheet.differences()) if sheet.filled.differences else [],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def latex(sheet: Sheet) -> str:
    """A `table*` to \\input, for a preamble with \\usepackage{booktabs,graphicx}."""
    num_metrics, leaves = len(sheet.metrics), sheet.leaves
    sizes = 1 if sheet.has_parameters else 0
    num_lead = 2 + sizes
    num_columns = num_lead + num_metrics * len(leaves)
    tops, rules, column = [], [], num_lead + 1
    for leaf in leaves:
        tops.append(rf"\multicolumn{{{num_metrics}}}{{c}}{{{_tex(leaf)}}}")
        rules.append(rf"\cmidrule(lr){{{column}-{column + num_metrics - 1}}}")
        column += num_metrics
    lead = ["Method", *(["Parameters"] if sizes else []), "Source"]
    lines = [
        r"% \usepackage{booktabs,graphicx}; texts in Chinese also need xeCJK and XeLaTeX",
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{_tex(sheet.title)}. {_tex(LEGEND)} Quoted from {_tex(sheet.origin)}.}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{'l' * num_lead}{'r' * (num_columns - num_lead)}}}",
        r"\toprule",
        _tex_row(["", *[""] * (num_lead - 1), *tops]),
        " ".join(rules),
        _tex_row([*lead, *sheet.metrics * len(leaves)]),
    ]
    for heading, group in sheet.groups():
        lines += [r"\midrule", _tex_row([rf"\multicolumn{{{num_columns}}}{{l}}{{\textit{{{_tex(heading)}}}}}"])]
        for row in group:
            texts = [*([row.parameters] if sizes else []), row.source]
            lines.append(_tex_row([_tex_marked(row.title), *map(_tex, texts), *map(_tex_marked, row.figures)]))
            if any(row.intervals):  # below the figures: beside them no page is wide enough
                lines.append(
                    _tex_row([*[""] * num_lead, *(rf"\scriptsize{{{each}}}" if each else "" for each in row.intervals)])
                )
    lines += [r"\bottomrule", r"\end{tabular}}"]
    below = [f"{mark}: {text}" for mark, text in _marked(sheet.notes)] + sheet.remarks
    below += [
        f"{row}, {column}: n = {n}, {parsed} parsed, run {run}." for row, column, n, parsed, run in sheet.measurements()
    ]
    lines += [rf"\par\smallskip\raggedright\footnotesize {_tex(text)}" for text in below]
    lines.append(r"\end{table*}")
    if differences := sheet.differences():
        lines += [
            r"\begin{table*}",
            r"\centering",
            r"\caption{Differences, in per cent points, and p-values; Holm: adjusted over the columns of a row.}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{lll{'r' * (len(DIFFERENCES) - 3)}}}",
            r"\toprule",
            _tex_row([_tex(each) for each in DIFFERENCES]),
            r"\midrule",
            *(_tex_row([_tex(each) for each in row]) for row in differences),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
        ]
    return "\n".join(lines) + "\n"


def html(sheet: Sheet) -> str:
    """One page by itself: no script, no network."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    template = environment.get_template("table.html.jinja")
    return template.render(
        sheet=sheet,
        legend=LEGEND,
        notes=list(_marked(sheet.notes)),
        empty=_EMPTY,
        measurements=MEASUREMENTS,
        differences=DIFFERENCES,
    )


def _marked(notes: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(ascii_lowercase, notes, strict=False)


def _marks(has_note: Iterable[bool]) -> str:
    """Of the notes, by number, that there are."""
    return ",".join(mark for mark, is_there in zip(ascii_lowercase, has_note, strict=False) if is_there)


def _one_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _plain(text: Marked) -> str:
    return f"{text.text} ({text.marks})" if text.marks else text.text


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.1f}, {high:.1f}]"


def _told(each: Difference) -> tuple[str, ...]:
    interval = "" if each.low is None or each.high is None else f" [{each.low:+.1f}, {each.high:+.1f}]"
    p_values = (each.p_bootstrap, each.p_bootstrap_holm, each.p_mcnemar, each.p_mcnemar_holm)
    return (f"{each.difference:+.2f}{interval}", *(_p(value) for value in p_values))


def _p(value: float | None) -> str:
    return _EMPTY if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


_TEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
    "–": "--",
    "\n": " ",
}


def _tex(text: str) -> str:
    """Text as LaTeX shows it, character by character."""
    return "".join(_TEX.get(each, each) for each in text)


def _tex_marked(text: Marked) -> str:
    return _tex(text.text) + (rf"\textsuperscript{{{text.marks}}}" if text.marks else "")


def _tex_row(cells: Sequence[str]) -> str:
    line = " & ".join(cells)
    # What begins so would be taken for an argument of the `\\` of the line above.
    return ("{}" if re.match(r"\s*[\[*]", line) else "") + line + r" \\"


def _to_parquet(table: pa.Table) -> bytes:
    made_by = json.dumps({"versions": code_version()}).encode()
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({b"mentalglm": made_by}), buffer, compression="zstd")
    return buffer.getvalue()
