"""Metrics as people read them: Markdown, in per cent."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_COLUMNS = {"f1": "F1", "precision": "P", "recall": "R", "accuracy": "accuracy"}
_SCORES = ("f1", "precision", "recall")
_ALWAYS_TOLD = ("parse_failed", "truncated", "refused")
_AVERAGES = ("micro", "macro", "weighted")


def markdown(metrics: Mapping[str, Any]) -> str:
    """What `metrics.json` holds, as `metrics.md`."""
    blocks = [
        [f"# {metrics['task']}: {_named(metrics['provenance']['predictions'])}"],
        _scores(metrics),
        [denominators(metrics)],
        *_more(metrics),
        *_details(metrics),
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def denominators(metrics: Mapping[str, Any]) -> str:
    """One line: of how many rows, and what became of those that are no hits."""
    failed = metrics["num_failed_by_status"]
    parts = [f"n = {metrics['n']}", f"{metrics['num_parsed']} parsed"]
    parts += [f"{failed.get(status, 0)} {status}" for status in sorted({*_ALWAYS_TOLD, *failed})]
    if metrics["num_free_form"] is not None:
        parts.append(f"{metrics['num_free_form']} parsed but not in the task's form")
    parts.append(f"{metrics['num_without_label']} parsed as no label")
    parts.append(f"{metrics['num_with_out_of_set_label']} with a label out of the set")
    parts.append(f"{metrics['num_without_gold']} predictions without a gold label left out")
    if (rest := metrics.get("without_training_texts")) is not None:
        parts.append(f"{rest['num_in_training']} rows whose text was trained on")
    return ", ".join(parts) + "; no id is missing or comes twice."


def levels_of(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """`label`, or `parent` and `child`, -> the metrics of that level."""
    return {name: metrics[name] for name in ("parent", "child") if name in metrics} or {"label": metrics}


def _scores(metrics: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, level in levels_of(metrics).items():
        kind = level["average"]
        rows.append([f"{name}, {kind}", *(_cell(level, key) for key in _COLUMNS)])
        if level["strict"]:
            rows.append([f"{name}, {kind}, strict", *(_percent(level["strict"].get(key)) for key in _COLUMNS)])
        rows += [
            [f"{name}, {how}", *(_percent(level[how].get(key)) for key in _COLUMNS)]
            for how in _AVERAGES
            if how in level and how != kind
        ]
    if (rest := metrics.get("without_training_texts")) and "n" in rest:
        rows += [
            [f"{name}, {level['average']}, without {rest['num_in_training']} rows whose text was trained on"]
            + [_cell(level, key) for key in _COLUMNS]
            for name, level in levels_of(rest).items()
        ]
    return list(markdown_table(["%", *_COLUMNS.values()], rows))


def _details(metrics: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, level in levels_of(metrics).items():
        rows = [
            [slug, *(_percent(each[key]) for key in _SCORES), each["support"], each["num_predicted"]]
            for slug, each in level["per_label"].items()
        ]
        yield list(markdown_table([name, "F1", "P", "R", "support", "predicted"], rows))
    if confusion := metrics.get("confusion"):
        names = list(next(iter(confusion.values())))
        yield list(
            markdown_table(["gold \\ predicted", *names], [[slug, *row.values()] for slug, row in confusion.items()])
        )


def _more(metrics: Mapping[str, Any]) -> Iterator[list[str]]:
    """What there is not always."""
    if scores := metrics.get("hierarchical"):
        kept = metrics["consistency"]
        yield [
            f"Hierarchical F1 {_percent(scores['f1'])} (P {_percent(scores['precision'])}, R "
            f"{_percent(scores['recall'])}). Of {kept['num_with_child']} rows with a child, "
            f"{kept['num_child_without_parent']} lack its parent; {kept['num_child_under_wrong_parent']} answers put a "
            f"child under a wrong parent, {kept['num_parent_without_child']} named a parent without a child."
        ]
    if explained := metrics.get("explanations"):
        yield [_explanations(explained)]
    if over := metrics.get("over_runs"):
        rows = [
            [name, len(each["f1"]["values"])]
            + [f"{_percent(each[key]['mean'])} ± {100 * each[key]['standard_deviation']:.2f}" for key in _SCORES]
            for name, each in over.items()
        ]
        yield list(markdown_table(["mean ± standard deviation, %", "runs", "F1", "P", "R"], rows))
    if comparison := metrics.get("comparison"):
        yield _comparison(comparison)
    if calibration := metrics.get("calibration"):
        yield _calibration(calibration)


def _comparison(comparison: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, each in comparison["levels"].items():
        ends = each["ci95"]
        interval = f" [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]" if ends else ""
        tests = [_tested(each[test], each[f"{test}_holm"]) for test in ("p_bootstrap", "p_mcnemar")]
        only = f"{each['num_only_this']} / {each['num_only_other']}"
        rows.append([name, f"{100 * each['difference']:+.2f}{interval}", tests[0], only, tests[1]])
    header = [
        f"minus {_named(comparison['against'])}",
        "F1 difference, %",
        "p, bootstrap (Holm)",
        "right here / there alone",
        "p, McNemar (Holm)",
    ]
    return list(markdown_table(header, rows))


def _explanations(explained: Mapping[str, Any]) -> str:
    told = f"Explanations: {explained['num_explained']} of {explained['num_ok']} answers have one"
    if lengths := explained["num_characters"]:
        told += (
            f", of {lengths['p50']:.0f} characters (median; 5 to 95 %: {lengths['p05']:.0f} to {lengths['p95']:.0f})"
        )
    if (quotes := explained["quotes"]) is None:
        return told + ". Quotes were not looked up: the posts are not at hand (`posts`)."
    ends = quotes["ci95"]
    share = f" ({_percent(quotes['share_not_in_post'])} %{_ends(ends)})" if quotes["num_quotes"] else ""
    missing = f"{quotes['num_not_in_post']}{share} do not stand in the post"
    told += f". Of {quotes['num_quotes']} quotes in {quotes['num_with_quote']} of them, {missing}, in "
    told += f"{quotes['num_with_quote_not_in_post']} explanations; {quotes['num_names_of_labels']} names of labels in "
    told += "quotation marks are not counted"
    left = quotes["num_without_post"]
    return told + (f"; {left} explanations whose post was not found are left out." if left else ".")


def _ends(ends: Sequence[float] | None) -> str:
    return f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else ""


def _calibration(calibration: Mapping[str, Any]) -> list[str]:
    precisions = list(dict.fromkeys(at for each in calibration.values() for at in each["sensitivity_at_precision"]))
    rows = []
    for slug, each in calibration.items():
        found = [each["sensitivity_at_precision"].get(at) for at in precisions]
        sensitivities = [_percent(at["recall"]) if at else "" for at in found]
        scores = [f"{each[key]:.3f}" if each[key] is not None else "" for key in ("auroc", "auprc", "brier", "ece")]
        rows.append([slug, each["num_rows"], each["num_positive"], *scores, *sensitivities])
    at = [f"R at P ≥ {100 * float(each):g} %" for each in precisions]
    return list(markdown_table(["probability of", "rows", "positive", "AUROC", "AUPRC", "Brier", "ECE", *at], rows))


def _named(predictions: Mapping[str, Any]) -> str:
    """By what a reader knows them: the run, or else the address, and the adapter."""
    name = predictions["run_id"] or predictions["uri"]
    return f"{name}, {predictions['adapter']}" if predictions["adapter"] else str(name)


def _tested(p: float | None, adjusted: float | None) -> str:
    return "" if p is None or adjusted is None else f"{_p(p)} ({_p(adjusted)})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _cell(level: Mapping[str, Any], key: str) -> str:
    return _percent(level[key]) + _ends((level["ci95"] or {}).get(key))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(map(str, row))} |" for row in rows)
