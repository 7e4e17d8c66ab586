"""What a run will take. `ray job submit ... -- python -m jobs.estimate CONFIG.yaml` is `mentalglm estimate ...`."""

import sys

from mentalglm.cli import main

if __name__ == "__main__":
    main(["estimate", *sys.argv[1:]])
