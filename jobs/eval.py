"""Evaluate predictions. `ray job submit ... -- python -m jobs.eval CONFIG.yaml` is `mentalglm eval CONFIG.yaml`."""

import sys

from mentalglm.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
