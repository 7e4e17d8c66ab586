"""Score posts. `ray job submit ... -- python -m jobs.score CONFIG.yaml` is `mentalglm score CONFIG.yaml`."""

import sys

from mentalglm.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
