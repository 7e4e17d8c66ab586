"""The paper's tables: what is quoted is what it prints, and what is measured stands where it belongs."""

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from statsmodels.stats.multitest import multipletests
from typer.testing import CliRunner

from mentalglm.cli import app
from mentalglm.config import EvalConfig, TablesConfig
from mentalglm.errors import ConfigError, InputError
from mentalglm.evaluation.job import evaluate_run
from mentalglm.evaluation.paper import fill, load_table, table_names, write_tables
from mentalglm.evaluation.paper.render import Sheet, markdown, render
from mentalglm.tasks import load_task

TASKS = {"sos_hl_1k": "suicide_risk", "socialcd_3k": "cognitive_distortion", "cp": "cognitive_pathway"}
NUM_ROWS = 60
HOSTILE = r"""[x] * & 50% _ # {y} \z ~ ^ $1$ "q" <script>alert(1)</script> | 风险"""


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of each task, in a folder of its data set's name; with a comparison."""
    folder = tmp_path_factory.mktemp("evaluations")
    for column, name in TASKS.items():
        write_evaluation(folder, column, name)
    return folder


@pytest.fixture
def folder(evaluations: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return shutil.copytree(evaluations, tmp_path / "folder")


def write_evaluation(folder: Path, column: str, name: str, *, num_rows: int = NUM_ROWS, wrong: int = 3) -> None:
    """Predictions whose every `wrong`-th row is another label's, and the evaluation of them in `folder/column`."""
    task = load_task(name)
    slugs = task.answerable
    gold = [slugs[row % len(slugs)] for row in range(num_rows)]
    (folder / f"{column}.jsonl").write_text(
        "".join(json.dumps({"post_id": row, "label": [slug]}) + "\n" for row, slug in enumerate(gold))
    )
    for file, step in (("other", 2), ("this", wrong)):
        labels = [[slugs[(row + (row % step == 0)) % len(slugs)]] for row in range(num_rows)]
        table = {
            "post_id": [str(row) for row in range(num_rows)],
            "status": ["ok"] * num_rows,
            "labels": pa.array(labels, pa.list_(pa.string())),
        }
        pq.write_table(pa.table(table), folder / f"{column}-{file}.parquet")
    data = {
        "task": name,
        "predictions": str(folder / f"{column}-this.parquet"),
        "against": str(folder / f"{column}-other.parquet"),
        "gold": {"uri": str(folder / f"{column}.jsonl")},
        "output": {"uri": str(folder / column)},
        "num_bootstrap": 200,
    }
    evaluate_run(EvalConfig.model_validate(data))


def config(folder: Path, table: str = "table_4", **changes: Any) -> TablesConfig:
    how: dict[str, Any] = {"rows": {"mentalglm_chat": {column: str(folder / column) for column in TASKS}}}
    return TablesConfig.model_validate({"tables": {table: how | changes}, "output": {"uri": str(folder / "out")}})


@pytest.mark.parametrize("name", table_names())
def test_f1_is_that_of_the_p_and_r_beside_it_or_a_note_says_that_it_is_not(name: str) -> None:
    table = load_table(name)
    noted = {(row, leaf) for note in table.notes for row in note.rows for leaf in note.columns}
    num_doubtful = 0
    for row, each in table.rows.items():
        for leaf, figures in each.quoted.items():
            assert all(0 < figure <= 100 and round(figure, 2) == figure for figure in figures)
            if len(figures) == 3:
                f1, precision, recall = figures
                doubtful = abs(2 * precision * recall / (precision + recall) - f1) > 0.012
                assert not doubtful or (row, leaf) in noted, (row, leaf)
                num_doubtful += doubtful
    assert num_doubtful == (5 if name == "table_4" else 0)  # BERT's two levels, ChatGPT and GPT-4 on risk


def test_tables_have_the_rows_that_the_paper_has() -> None:
    tables = {name: load_table(name) for name in table_names()}
    assert {name: sum(bool(row.quoted) for row in table.rows.values()) for name, table in tables.items()} == {
        "table_3": 3,
        "table_4": 14,
        "table_5": 6,
        "table_s1": 2,
    }
    for table in tables.values():
        for row in table.rows.values():
            assert set(row.quoted) in (set(), set(table.leaves))


def test_figures_are_those_that_the_paper_s_text_reckons_with() -> None:
    """Sections 5.3 and 5.5 tell these differences in words; tables 3 and 4 print one row both."""
    four = {
        name: {leaf: values[0] for leaf, values in row.quoted.items()}
        for name, row in load_table("table_4").rows.items()
    }
    chat, ours, best_encoder = four["mentalglm_chat"], four["mentalglm"], four["chinese_mentalbert"]
    assert chat == {leaf: values[0] for leaf, values in load_table("table_3").rows["mentalglm_chat"].quoted.items()}
    assert chat["sos_hl_1k"] - best_encoder["sos_hl_1k"] == pytest.approx(3.82)
    assert best_encoder["socialcd_3k"] - ours["socialcd_3k"] == pytest.approx(1.85)
    assert ours["cp_child"] - best_encoder["cp_child"] == pytest.approx(3.33)
    assert max(four[row]["cp_parent"] for row in four if row.endswith(("_zs", "_fs"))) == 59.09
    five = {name: [values[0] for values in row.quoted.values()] for name, row in load_table("table_5").rows.items()}
    for row, other, gains in (
        ("mentalglm", "glm_4_chat", [23.79, 29.36]),
        ("mentalglm_chat", "llama_3_chinese_instruct", [4.94, 2.95]),
    ):
        assert [one - base for one, base in zip(five[row], five[other], strict=True)] == pytest.approx(gains)


def test_a_cell_is_that_of_its_evaluation(folder: Path) -> None:
    write_tables(config(folder, more_rows={"mine": "Mine"}))
    cells = pq.read_table(folder / "out" / "table_4.parquet").to_pylist()
    table = load_table("table_4")
    assert len(cells) == (len(table.rows) + 1) * 4 * 3 * 2
    assert len({(each["row"], each["column"], each["metric"], each["source"]) for each in cells}) == len(cells)
    found = {(each["column"], each["metric"]): each for each in cells if each["run"]}
    assert len(found) == 12
    for column in TASKS:
        metrics = json.loads((folder / column / "metrics.json").read_text())
        levels = {"": metrics} if column != "cp" else {f"_{name}": metrics[name] for name in ("parent", "child")}
        for suffix, level in levels.items():
            for metric in table.metrics:
                cell = found[column + suffix, metric]
                assert cell["value"] == 100 * level[metric]
                assert [cell["low"], cell["high"]] == [100 * end for end in level["ci95"][metric]]
                assert (cell["row"], cell["source"], cell["num_rows"]) == ("mentalglm_chat", "measured", NUM_ROWS)
                assert cell["run"].endswith(f"{column}-this.parquet")
    quoted = [each for each in cells if each["source"] == "quoted" and each["value"] is not None]
    assert len(quoted) == 14 * 4 * 3
    assert {each["place"] for each in quoted} == {"Table 4, section 5.3"}
    assert {each["low"] for each in quoted} == {None}


def test_a_pattern_fills_what_is_there(folder: Path) -> None:
    (folder / "mentalglm").mkdir()
    shutil.move(folder / "cp", folder / "mentalglm" / "cp")
    rows = {"mentalglm_chat": {"sos_hl_1k": str(folder / "sos_hl_1k")}}
    [filled] = write_tables(config(folder, rows=rows, evaluations=str(folder / "{row}" / "{column}")))
    found = [(each.row, each.column) for each in filled.measurements]
    assert found == [("mentalglm_chat", "sos_hl_1k"), ("mentalglm", "cp")]
    assert filled.warnings == ()


@pytest.mark.parametrize(
    "pattern", ["ev_{task}", "{row}", "{column}", "{row}/{column}/{task}", "{row}/{column}/}", "ev"]
)
def test_a_pattern_that_finds_each_cell_holds_row_and_column(folder: Path, pattern: str) -> None:
    with pytest.raises(ValueError, match=r"must hold \{row\} and \{column\}, and no other braces; write it like"):
        config(folder, evaluations=pattern)


def test_a_pattern_that_finds_nothing_is_told_where_a_person_looks(folder: Path) -> None:
    data = {"rows": {}, "evaluations": str(folder / "nothing/{row}/{column}")}
    path = folder / "tables.yaml"
    path.write_text(json.dumps({"tables": {"table_4": data}, "output": {"uri": str(folder / "out")}}))
    result = CliRunner().invoke(app, ["tables", str(path)])
    assert (result.exit_code, "No row is measured." in result.stdout) == (0, True)
    place = f"{folder}/nothing/{{row}}/{{column}}"
    assert result.stderr == (
        f"warning: tables.table_4.evaluations = {place}: no evaluation is there; run `mentalglm eval` first\n"
    )


def test_people_see_both_figures_what_is_missing_and_what_is_wrong(folder: Path) -> None:
    [filled] = write_tables(config(folder, more_rows={"mine": "Mine | yours"}))
    text = (folder / "out" / "table_4.md").read_text(encoding="utf-8")
    assert text == markdown(Sheet(filled))
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("| MentalGLM-chat |"))
    f1 = 100 * json.loads((folder / "sos_hl_1k" / "metrics.json").read_text())["f1"]
    assert "| quoted | 85.12 | 87.29 |" in lines[at]
    assert lines[at + 1].startswith(f"|  |  | measured | {f1:.2f} [")
    assert r"| Mine \| yours |  | measured | – | –" in text
    assert "| 77.01 (a) |" in text
    assert "- a: F1 is not 2PR/(P+R)" in text
    assert "Not measured: BERT; Chinese-BERT-wwm;" in text
    assert f"MentalGLM-chat, CP: measured on {NUM_ROWS} rows, the paper's test set has 945" in text
    [nothing] = write_tables(TablesConfig.model_validate({"tables": {"table_5": {}}, "output": {"uri": str(folder)}}))
    assert "No row is measured." in markdown(Sheet(nothing))


def test_p_values_are_adjusted_over_the_columns_of_a_row(folder: Path) -> None:
    [filled] = write_tables(config(folder))
    found = filled.differences
    assert [each.column for each in found] == ["sos_hl_1k", "socialcd_3k", "cp_parent", "cp_child"]
    for name in ("p_mcnemar", "p_bootstrap"):
        theirs = multipletests([getattr(each, name) for each in found], method="holm")[1]
        assert [getattr(each, f"{name}_holm") for each in found] == pytest.approx(theirs)
    level = json.loads((folder / "cp" / "metrics.json").read_text())["comparison"]["levels"]["child"]
    assert found[-1].p_mcnemar_holm != level["p_mcnemar_holm"]  # that is over two columns, this over four
    assert len(pq.read_table(folder / "out" / "table_4.differences.parquet")) == 4
    assert "| p, McNemar |" in markdown(Sheet(filled))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": {"mentalglm_xl": {}}}, ["tables.table_4.rows = 'mentalglm_xl'", "no such row", "mentalglm_chat"]),
        ({"rows": {"bert": {"sos": "sos_hl_1k"}}}, ["rows.bert.sos", "no such column", "sos_hl_1k, socialcd_3k, cp"]),
        ({"rows": {"bert": {"sos_hl_1k": "cp"}}}, ["rows.bert.sos_hl_1k", "cognitive_pathway", "suicide_risk"]),
        ({"rows": {"bert": {"cp": "cp"}, "mentalglm": {"cp": "cp"}}}, ["rows.mentalglm.cp", "fills bert.cp too"]),
        ({"more_rows": {"bert": "BERT"}}, ["more_rows.bert", "choose another"]),
    ],
)
def test_what_fits_no_cell_is_refused(folder: Path, change: dict[str, Any], words: list[str]) -> None:
    rows = {
        row: {column: str(folder / uri) for column, uri in each.items()} for row, each in change.get("rows", {}).items()
    }
    with pytest.raises(ConfigError) as caught:
        write_tables(config(folder, **(change | {"rows": rows})))
    for word in words:
        assert word in str(caught.value)
    assert not (folder / "out").exists()


def test_what_is_no_evaluation_or_of_other_posts_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.bert\.cp = .*: no metrics\.json there"):
        write_tables(config(folder, rows={"bert": {"cp": str(folder / "none")}}))
    write_evaluation(folder, "more", "cognitive_pathway", num_rows=40)
    rows = {"bert": {"cp": str(folder / "cp")}, "mentalglm": {"cp": str(folder / "more")}}
    with pytest.raises(InputError, match=r"rows\.mentalglm\.cp = .*its gold labels are not those of bert\.cp"):
        write_tables(config(folder, rows=rows))
    rows = {"test_set": {"cp": str(folder / "cp")}, "expert_set": {"cp": str(folder / "more")}}
    [filled] = write_tables(config(folder, "table_s1", rows=rows))  # its rows are sets of texts
    assert [leaf.level for leaf in filled.table.leaves.values()] == ["label", "label", "child"]
    path = folder / "cp" / "metrics.json"
    metrics = json.loads(path.read_text())
    for name in ("sha256", "labels_sha256"):  # as of an evaluation against the labels of a run
        del metrics["provenance"]["gold"][name]
    path.write_text(json.dumps(metrics))
    [filled] = write_tables(config(folder, "table_s1", rows={"test_set": {"cp": str(folder / "cp")}}))
    assert "Test set, CP: held against the labels of a run" in markdown(Sheet(filled))
    with pytest.raises(InputError, match=r"rows\.bert\.cp = .*the labels of a run, not of people"):
        write_tables(config(folder, rows={"bert": {"cp": str(folder / "cp")}}))
    path.write_text(path.read_text().replace('"average": "micro"', '"average": "macro"'))
    with pytest.raises(ConfigError, match=r"rows\.bert\.cp = .*macro average of level parent; the column is of micro"):
        write_tables(config(folder, rows={"bert": {"cp": str(folder / "cp")}}))
    whole = json.loads(path.read_text())
    del whole["provenance"]["predictions"]["adapter"]
    path.write_text(json.dumps(whole))
    with pytest.raises(InputError, match="is not one of `mentalglm eval`"):
        write_tables(config(folder, rows={"bert": {"cp": str(folder / "cp")}}))
    path.write_text("{}")
    with pytest.raises(InputError, match="is not one of `mentalglm eval`"):
        write_tables(config(folder, rows={"bert": {"cp": str(folder / "cp")}}))
    with pytest.raises(ConfigError, match=r"tables\.table_6: no such table; use table_3"):
        write_tables(config(folder, "table_6"))


def test_a_table_of_one_s_own_is_a_yaml_file(folder: Path) -> None:
    own = folder / "own.yaml"
    own.write_text(
        "title: Ours\nplace: Our table\nmetrics: [f1]\n"
        "columns: {cp: {title: Weibo, task: cognitive_pathway, average: micro, num_rows: 60, levels: [child]}}\n"
        "groups: [{title: All, rows: {a: {title: A, quoted: {cp: [50.5]}}}}]\n"
    )
    [filled] = write_tables(config(folder, str(own), rows={"a": {"cp": str(folder / "cp")}}))
    assert "measured on" not in markdown(Sheet(filled))
    assert (folder / "out" / "own.html").exists()
    own.write_text(own.read_text().replace("{cp: [50.5]}", "{cp: [50.5, 1]}"))
    with pytest.raises(ConfigError, match=r"a\.quoted\.cp: give f1, not 2 figures"):
        write_tables(config(folder, str(own)))


def hostile(folder: Path) -> dict[str, bytes]:
    how = config(folder, more_rows={"mine": HOSTILE}).tables["table_4"]
    return render(fill("table_4", load_table("table_4"), how))


def test_latex_shows_every_character_and_each_row_is_whole(folder: Path) -> None:
    text = hostile(folder)["table_4.tex"].decode()
    assert r"{}[x] * \& 50\% \_ \# \{y\} \textbackslash{}z \textasciitilde{} \textasciicircum{} \$1\$" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")].splitlines()
    rows = [line.removesuffix(r"\\") for line in body if line.endswith(r"\\")]
    assert len(rows) > 20
    for row in rows:
        plain = row.replace(r"\&", "")
        spans = sum(int(part.split("}")[0]) - 1 for part in plain.split(r"\multicolumn{")[1:])
        assert plain.count("&") + 1 + spans == 15, row
    unescaped = text.replace(r"\{", "").replace(r"\}", "")
    assert unescaped.count("{") == unescaped.count("}")


def test_gold_labels_are_compared_and_not_the_file_that_holds_them(folder: Path) -> None:
    """Two annotators in one file are two; the same labels in another file, in another order, are one."""
    again = folder / "again.jsonl"
    lines = (folder / "cp.jsonl").read_text().splitlines()
    again.write_text("\n".join(lines[::-1]) + "\n")
    rows = [json.loads(line) for line in lines]
    second = [each["label"] for each in [*rows[1:], rows[0]]]
    both = folder / "both.jsonl"
    both.write_text("".join(json.dumps(row | {"b": b}) + "\n" for row, b in zip(rows, second, strict=True)))
    for name, gold in {"again": {"uri": again}, "a": {"uri": both}, "b": {"uri": both, "label_column": "b"}}.items():
        data = {
            "task": "cognitive_pathway",
            "predictions": str(folder / "cp-other.parquet"),
            "gold": {key: str(value) for key, value in gold.items()},
            "output": {"uri": str(folder / "by" / name)},
            "num_bootstrap": 0,
        }
        evaluate_run(EvalConfig.model_validate(data))
    first, same = str(folder / "cp"), str(folder / "by" / "again")
    write_tables(config(folder, rows={"bert": {"cp": first}, "mentalglm": {"cp": same}}))
    rows_of = {"bert": {"cp": str(folder / "by" / "a")}, "mentalglm": {"cp": str(folder / "by" / "b")}}
    with pytest.raises(InputError, match=r"rows\.mentalglm\.cp = .*its gold labels are not those of bert\.cp"):
        write_tables(config(folder, rows=rows_of))
    shutil.copytree(folder / "by" / "b", folder / "pattern" / "bert" / "cp")
    by_pattern = {"rows": {"mentalglm": rows_of["bert"]}, "evaluations": str(folder / "pattern" / "{row}" / "{column}")}
    with pytest.raises(InputError, match=r"tables\.table_4\.evaluations = .*its gold labels are not those"):
        write_tables(config(folder, **by_pattern))


def changed(folder: Path, name: str, run_id: str | None, adapter: str | None = None, f1: float | None = None) -> str:
    """A copy of the evaluation of the pathway, as of this run and adapter; with this F1, if there is one."""
    shutil.copytree(folder / "cp", folder / name)
    path = folder / name / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["provenance"]["predictions"] |= {"run_id": run_id, "adapter": adapter}
    metrics["child"] |= {"f1": f1} if f1 is not None else {}
    path.write_text(json.dumps(metrics))
    return str(folder / name)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (("run",), ("run",), True),
        (("run", None, 0.1), ("run", None, 0.2), True),
        (("run", "s1"), ("run", "s2"), False),
        (("run",), ("other",), False),
        ((None,), (None,), True),
        ((None, None, 0.1), (None, None, 0.2), False),
    ],
)
def test_predictions_fill_a_column_of_one_method(
    folder: Path, one: tuple[Any, ...], other: tuple[Any, ...], is_same: bool
) -> None:
    rows = {"bert": {"cp": changed(folder, "one", *one)}, "mentalglm": {"cp": changed(folder, "other", *other)}}
    if not is_same:
        write_tables(config(folder, rows=rows))
        return
    words = r"rows\.mentalglm\.cp = .*: evaluates the predictions of bert\.cp \(.*\); a row is of one method"
    with pytest.raises(InputError, match=words):
        write_tables(config(folder, rows=rows))
    assert not (folder / "out").exists()


def test_a_comparison_names_the_adapter_that_it_is_with(folder: Path) -> None:
    path = folder / "cp" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["provenance"]["predictions"] |= {"run_id": "run", "adapter": "s1"}
    metrics["comparison"]["against"] |= {"run_id": "run", "adapter": "s2"}
    path.write_text(json.dumps(metrics))
    [filled] = write_tables(config(folder, rows={"mentalglm": {"cp": str(folder / "cp")}}))
    assert {each.against for each in filled.differences} == {"run, s2"}
    assert {each.run for each in filled.measurements} == {"run, s1"}


def test_an_evaluation_that_tells_the_file_alone_is_compared_by_it(folder: Path) -> None:
    """As earlier versions wrote it."""
    shutil.copytree(folder / "cp", folder / "earlier")
    path = folder / "earlier" / "metrics.json"
    metrics = json.loads(path.read_text())
    del metrics["provenance"]["gold"]["labels_sha256"]
    metrics["provenance"]["predictions"]["run_id"] = "earlier"
    metrics["provenance"]["predictions"]["parser"] = "4"  # the other one's predictions are foreign, read by no parser
    path.write_text(json.dumps(metrics))
    rows = {"bert": {"cp": str(folder / "cp")}, "mentalglm": {"cp": str(folder / "earlier")}}
    [filled] = write_tables(config(folder, rows=rows))
    assert "versions of the parser" not in markdown(Sheet(filled))
    metrics["provenance"]["gold"]["sha256"] = "0" * 64
    path.write_text(json.dumps(metrics))
    with pytest.raises(InputError, match="its gold labels are not those of"):
        write_tables(config(folder, rows=rows))


def test_other_task_files_and_parsers_in_a_column_are_told(folder: Path) -> None:
    shutil.copytree(folder / "cp", folder / "other")
    path = folder / "other" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["provenance"]["task"]["digest"] = "0" * 64
    metrics["provenance"]["predictions"] |= {"parser": "1", "run_id": "other"}
    metrics["without_training_texts"] = {"num_in_training": 1}
    path.write_text(json.dumps(metrics))
    first = json.loads((folder / "cp" / "metrics.json").read_text())
    first["provenance"]["predictions"]["parser"] = "4"
    (folder / "cp" / "metrics.json").write_text(json.dumps(first))
    rows = {"bert": {"cp": str(folder / "cp")}, "mentalglm": {"cp": str(folder / "other")}}
    [filled] = write_tables(config(folder, rows=rows))
    text = markdown(Sheet(filled))
    assert "CP: evaluated by task files that differ" in text
    assert "CP: answers were read by versions of the parser that differ" in text
    assert "MentalGLM, CP: texts that are in the training file of its eval job: 1;" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX on this machine")
def test_latex_compiles(folder: Path) -> None:
    text = hostile(folder)["table_4.tex"].decode().replace("风险", "")  # Chinese wants XeLaTeX
    (folder / "table.tex").write_text(text, encoding="utf-8")
    document = r"\documentclass{article}\usepackage{booktabs,graphicx}"
    (folder / "main.tex").write_text(document + r"\begin{document}\input{table}\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:]


def test_the_page_stands_alone_and_holds_no_markup_of_others(folder: Path) -> None:
    page = hostile(folder)["table_4.html"].decode()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    for word in ("http:", "https:", "src=", "@import", "url("):
        assert word not in page
    parser = _Rows()
    parser.feed(page)
    assert len(parser.widths) > 20
    assert set(parser.widths[2:-9]) <= {15}  # head; then lines of the table; the lists below are narrower


class _Rows(HTMLParser):
    """Columns that each row of a page's tables spans."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.widths.append(0)
        elif tag in ("td", "th"):
            self.widths[-1] += int(dict(attrs).get("colspan") or 1)
