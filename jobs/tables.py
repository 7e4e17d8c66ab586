"""The paper's tables. `ray job submit ... -- python -m jobs.tables CONFIG.yaml` is `mentalglm tables CONFIG.yaml`."""

import sys

from mentalglm.cli import main

if __name__ == "__main__":
    main(["tables", *sys.argv[1:]])
