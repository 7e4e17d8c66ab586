"""Train a baseline. `ray job submit ... -- python -m jobs.baseline CONFIG.yaml` is `mentalglm baseline CONFIG.yaml`."""

import sys

from mentalglm.cli import main

if __name__ == "__main__":
    main(["baseline", *sys.argv[1:]])
