"""Time the score job. `ray job submit ... -- python -m jobs.bench CONFIG.yaml` is `mentalglm bench CONFIG.yaml`."""

import sys

from mentalglm.cli import main

if __name__ == "__main__":
    main(["bench", *sys.argv[1:]])
