"""Entry points for `ray job submit`, one module per job: `python -m jobs.score CONFIG.yaml`."""
