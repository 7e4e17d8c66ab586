"""What a killed worker costs: steps that are done again, and whether the result is the same.

    python -m mentalglm.measure.training_kills

A stage is trained undisturbed, and once more with its worker killed (SIGKILL) at random steps. How many steps a worker
had done when it was killed, nobody has written down: it is told from the last line of the log, which is some seconds
old, and the time of a step, to about one step. It is gone on from the newest checkpoint that is whole.
"""

import argparse
import random
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from mentalglm.measure.training import STAGE, bench_config, free_threads, write_records
from mentalglm.training.checkpoint import list_checkpoints
from mentalglm.training.metrics_log import read_metrics
from mentalglm.training.pipeline import train

_POLL_INTERVAL_S = 0.05


@dataclass(frozen=True, slots=True)
class Kill:
    """One of them."""

    num_done: float
    """Steps that the worker had done, about."""
    num_saved: int
    """Of these, in the checkpoint that is gone on from."""

    @property
    def num_again(self) -> float:
        """Steps that are done again."""
        return max(0.0, self.num_done - self.num_saved)


class Killer(threading.Thread):
    """Kills the workers of a stage once for each target, when about so many steps are done or soon after.

    A worker must have written to the log before it is killed, so that it is known where it was.
    """

    def __init__(self, stage: Path, targets: Sequence[int]) -> None:
        super().__init__(name="killer", daemon=True)
        self.kills: list[Kill] = []
        self._stage = stage
        self._targets = targets
        self._is_over = threading.Event()

    def run(self) -> None:
        """See the class."""
        started = 0.0
        for target in self._targets:
            while (num_done := self._num_done(started)) is None or num_done < target:
                if self._is_over.wait(_POLL_INTERVAL_S):
                    return
            if self._kill_workers():
                saved = list_checkpoints(str(self._stage / "_run" / "checkpoints"))
                self.kills.append(Kill(num_done, saved[-1].step if saved else 0))
            started = time.time()

    def stop(self) -> None:
        """Ends it; targets that are left are left out."""
        self._is_over.set()
        self.join()

    def _num_done(self, started: float) -> float | None:
        """Steps that are done by now, None where the worker that runs since `started` has not written yet."""
        return steps_done([line for line in read_metrics(str(self._stage)) if line["time"] > started], time.time())

    def _kill_workers(self) -> bool:
        found = [each for each in psutil.Process().children(recursive=True) if "RayTrainWorker" in each.name()]
        for process in found:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(found, timeout=10)
        return bool(found)


def steps_done(lines: Sequence[dict[str, Any]], now: float) -> float | None:
    """Steps done at the time `now`, going on at the pace of the last lines; None where there are no two of them."""
    if len(lines) < 2:
        return None
    first, last = lines[-20:][0], lines[-1]
    pace = (last["time"] - first["time"]) / (last["step"] - first["step"])
    done: float = last["step"] + (now - last["time"]) / max(pace, 1e-6)
    return done


def measure(num_steps: int, num_kills: int, save_every: int, seed: int) -> tuple[list[Kill], bool]:
    """(the kills, whether the adapter is that of the undisturbed stage, bit by bit)."""
    with tempfile.TemporaryDirectory(prefix="mentalglm-kills-") as name:
        folder = Path(name)
        write_records(folder / "records.jsonl")
        changes = {
            "lora": {"lora_dropout": 0.1},
            "checkpoints": {"every_steps": save_every},
            "tracking": {"log_every_steps": 1},
        }

        def adapter_of(output: Path) -> bytes:
            workers = {"num_cpus": free_threads(), "max_failures": num_kills}
            job = bench_config(folder / "records.jsonl", output, num_steps, 1, **changes, workers=workers)
            train(job)
            return (output / STAGE / "adapter" / "adapter_model.safetensors").read_bytes()

        undisturbed = adapter_of(folder / "undisturbed")
        targets = sorted(random.Random(seed).sample(range(1, num_steps), num_kills))  # noqa: S311 - no secret
        killer = Killer(folder / "killed" / STAGE, targets)
        killer.start()
        killed = adapter_of(folder / "killed")
        killer.stop()
        return killer.kills, killed == undisturbed


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m mentalglm.measure.training_kills")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    kills, is_same = measure(options.steps, options.kills, options.save_every, options.seed)
    for each in kills:
        print(
            f"killed after about {each.num_done:.1f} steps, gone on from {each.num_saved}: {each.num_again:.1f} again"
        )
    mean = sum(each.num_again for each in kills) / max(len(kills), 1)
    print(f"{len(kills)} kills, {mean:.1f} steps done again for each, saved every {options.save_every}")
    print(f"the adapter is {'' if is_same else 'NOT '}that of the undisturbed stage, bit by bit")


if __name__ == "__main__":
    main()
