"""A page about runs. `ray job submit ... -- python -m jobs.report CONFIG.yaml` is `mentalglm report ...`."""

import sys

from mentalglm.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
