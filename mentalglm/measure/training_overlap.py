"""How much of validation goes on while training does: a LoRA stage on the demo model, validated by real vLLM.

    python -m mentalglm.measure.training_overlap

Of the seconds of each validation, loading the model included, those count in which a step was being done. The last
checkpoint is validated when training has ended, so the share of the others is told apart; and what it costs, the time
of a step beside a validation and without one.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mentalglm.measure.training import STAGE, bench_config, write_records
from mentalglm.training.metrics_log import read_metrics
from mentalglm.training.pipeline import train
from mentalglm.training.validation.notes import read_validations


@dataclass(frozen=True, slots=True)
class Span:
    """A time; s since 1970."""

    start: float
    stop: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.stop - self.start

    def shared_with(self, others: Sequence["Span"]) -> float:
        """Seconds in which one of the others goes on too; those follow each other."""
        return sum(max(0.0, min(self.stop, each.stop) - max(self.start, each.start)) for each in others)


@dataclass(frozen=True, slots=True)
class Overlap:
    """When steps and validations went on."""

    steps: Sequence[Span]
    validations: Sequence[Span]
    """In the order of their checkpoints."""

    def describe(self) -> list[str]:
        """Each validation, and their shares."""
        shared = [each.shared_with(self.steps) for each in self.validations]
        lines = [
            f"validation {number}: {each.seconds:.0f} s, {together / each.seconds:.0%} beside training"
            for number, (each, together) in enumerate(zip(self.validations, shared, strict=True), 1)
        ]
        for name, last in (("all", len(shared)), ("all but the last", len(shared) - 1)):
            if seconds := sum(each.seconds for each in self.validations[:last]):
                lines.append(f"{name}: {sum(shared[:last]) / seconds:.0%} of {seconds:.0f} s beside training")
        beside = [step.seconds for step in self.steps if step.shared_with(self.validations)]
        alone = [step.seconds for step in self.steps if not step.shared_with(self.validations)]
        for name, each in (("beside a validation", beside), ("alone", alone)):
            if each:
                lines.append(f"a step {name}: {1000 * statistics.median(each):.0f} ms (median of {len(each)})")
        return lines


def measure(num_steps: int, num_validations: int, engine: str) -> Overlap:
    """Trains a stage whose checkpoints are validated so many times, on one CPU each."""
    with tempfile.TemporaryDirectory(prefix="mentalglm-overlap-") as name:
        folder = Path(name)
        write_records(folder / "records.jsonl")
        resources = {} if engine == "echo" else {"num_cpus": 1}
        selection = {"engine": {"kind": engine, **resources}, "every_steps": num_steps // num_validations}
        tracking = {"log_every_steps": 1}
        train(bench_config(folder / "records.jsonl", folder, num_steps, 1, selection=selection, tracking=tracking))
        stage = folder / STAGE
        ended = {path.stem: path.stat().st_mtime for path in (stage / "_run" / "validation").glob("*.json")}
        return Overlap(
            steps=[Span(line["time"] - line["step_s"], line["time"]) for line in read_metrics(str(stage))],
            validations=[
                Span(ended[each.checkpoint] - each.seconds, ended[each.checkpoint])
                for each in read_validations(str(stage))
            ],
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m mentalglm.measure.training_overlap")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--validations", type=int, default=4)
    parser.add_argument("--engine", choices=["vllm", "echo"], default="vllm")
    options = parser.parse_args(arguments)
    print("\n".join(measure(options.steps, options.validations, options.engine).describe()))


if __name__ == "__main__":
    main()
