"""Fine-tune. `ray job submit ... -- python -m jobs.train CONFIG.yaml` is `mentalglm train CONFIG.yaml`."""

import sys

from mentalglm.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
