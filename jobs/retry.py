"""Score failed rows again. `ray job submit ... -- python -m jobs.retry RUN_URI` is `mentalglm retry RUN_URI`."""

import sys

from mentalglm.cli import main

if __name__ == "__main__":
    main(["retry", *sys.argv[1:]])
