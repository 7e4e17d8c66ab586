# Two commands: `make quickstart` and `make test`. Both set everything up on the first call and nothing on the next.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0+cpu
# PyTorch's CPU build is not on PyPI: taken from where pip is configured to look, else from PyTorch's own index.
TORCH_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help setup quickstart demo test test-unit test-long lint lock demo-model bench train-demo
help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 16

$(VENV)/.installed: requirements-cpu.lock
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else 'mentalglm needs Python 3.11: make PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q --no-deps "$(TORCH)" \
	  || $(BIN)/python -m pip install -q --no-deps --index-url $(TORCH_INDEX) "$(TORCH)"
	$(BIN)/python -m pip install -q --no-deps --require-hashes --only-binary :all: -r requirements-cpu.lock
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

setup: $(VENV)/.installed  ## install everything into .venv (about 4 minutes, once)

quickstart: setup  ## score a sample corpus with the demo model, show the result, and hold it against gold labels
	@mkdir -p runs/quickstart
	@test -f runs/quickstart/gold.parquet || $(BIN)/python -m mentalglm.corpus.synthetic --num-posts 300 --seed 20261123 --output runs/quickstart/posts.parquet --gold runs/quickstart/gold.parquet
	$(BIN)/mentalglm score configs/score/quickstart.yaml
	@$(BIN)/python -c "import duckdb; print(duckdb.sql(open('configs/score/quickstart.sql', encoding='utf-8').read()))"
	$(BIN)/mentalglm eval configs/eval/quickstart.yaml

demo: train-demo  ## the whole chain: train two stages, score with the adapter, evaluate, report (about 7 minutes)
	@mkdir -p runs/demo
	@test -f runs/demo/gold.parquet || $(BIN)/python -m mentalglm.corpus.synthetic --num-posts 900 --seed 11 --spacing 25 --output runs/demo/posts.parquet --gold runs/demo/gold.parquet
	$(BIN)/mentalglm score configs/score/demo.yaml
	@for task in suicide_risk cognitive_distortion cognitive_pathway; do \
	  $(BIN)/mentalglm eval configs/eval/demo.yaml --set task=$$task --set gold.label_column=$$task \
	    --set output.uri=runs/demo/metrics/$$task > /dev/null || exit; \
	done
	$(BIN)/mentalglm report configs/report/demo.yaml

test: setup lint  ## ruff, mypy and every test but the long ones
	$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile --no-loadscope-reorder --cov=mentalglm --cov-report=term

test-unit: setup  ## the tests that need no Ray, seconds
	$(BIN)/python -m pytest tests/unit -q

test-long: setup  ## the tests that are too long for CI
	$(BIN)/python -m pytest -m long

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup runs/bench/posts.parquet runs/bench/two-layers  ## time the job: vLLM alone, ray.data.llm, feed (about 25 minutes)
	$(BIN)/mentalglm bench configs/bench/feed.yaml
	$(BIN)/mentalglm bench configs/bench/short.yaml
	$(BIN)/mentalglm bench configs/bench/two_layers.yaml

runs/bench/posts.parquet:
	@mkdir -p runs/bench
	$(BIN)/python -m mentalglm.corpus.synthetic --num-posts 3000 --seed 3 --output $@

runs/bench/two-layers:
	$(BIN)/python -m mentalglm.training.demo untrained --hidden-size 512 --output $@

train-demo: setup runs/train/records.parquet  ## train both stages on the demo model (about 5 minutes)
	$(BIN)/mentalglm train configs/train/demo.yaml

runs/train/records.parquet:
	@mkdir -p runs/train
	$(BIN)/python -m mentalglm.corpus.synthetic --num-posts 600 --seed 5 --output runs/train/posts.parquet --records $@

demo-model: setup  ## make the demo model again, from the seeded generator, by a train job (about 15 minutes)
	test -d runs/demo-model/untrained || $(BIN)/python -m mentalglm.training.demo prepare --output runs/demo-model
	$(BIN)/mentalglm train configs/train/demo-model.yaml
	cd runs/demo-model/trained/demo/model && cp *.json *.jinja *.safetensors ../../../../../mentalglm/demo/model

lock:  ## resolve requirements-cpu.lock anew (needs uv)
	uv pip compile pyproject.toml --extra cpu --extra dev --python-version 3.11 \
	  --extra-index-url $(TORCH_INDEX) --index-strategy unsafe-best-match \
	  --python-platform x86_64-manylinux_2_28 --no-emit-package torch --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header -q -o requirements-cpu.lock
