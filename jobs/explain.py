"""Add explanations to a finished run. `ray job submit ... -- python -m jobs.explain RUN_URI --set explain=positive` is
`mentalglm explain ...`."""

import sys

from mentalglm.cli import main

if __name__ == "__main__":
    main(["explain", *sys.argv[1:]])
