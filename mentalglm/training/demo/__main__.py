"""Command line of the demo model: see the docstring of the package."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mentalglm.engine.model import DEMO_MODEL
from mentalglm.training.demo.evaluate import evaluate
from mentalglm.training.demo.model import DemoSettings, prepare, untrained


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m mentalglm.training.demo", description="The demo model.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare", help="write what it is trained from: random weights and records")
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--num-posts", type=int, default=DemoSettings().num_posts)
    command = commands.add_parser("evaluate", help="measure it on held-out posts")
    command.add_argument("--model", type=Path, default=DEMO_MODEL)
    command.add_argument("--num-posts", type=int, default=600)
    command.add_argument("--seed", type=int, default=7)
    command.add_argument("--num-threads", type=int, default=2)
    command = commands.add_parser("untrained", help="random weights, for timing")
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--num-layers", type=int, default=2)
    command.add_argument("--hidden-size", type=int, default=128, help="a multiple of 64")
    options = parser.parse_args(arguments)
    if options.command == "prepare":
        prepare(options.output, DemoSettings(num_posts=options.num_posts))
    elif options.command == "untrained":
        untrained(options.output, num_layers=options.num_layers, hidden_size=options.hidden_size)
    else:
        figures = evaluate(
            options.model, num_posts=options.num_posts, seed=options.seed, num_threads=options.num_threads
        )
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
