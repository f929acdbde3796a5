# Both commands set up everything in .venv: `make demo` runs the main job on a real model, `make test` the tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo

.PHONY: demo test test-all format check benchmarks clean

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/depthdial study smollm2-135m --adapter elastic --out $(DEMO)

test: $(READY)
	$(BIN)/python -m pytest -m "not slow"

test-all: $(READY)
	$(BIN)/python -m pytest

format: $(READY)
	$(BIN)/ruff check --fix src tests benchmarks experiments
	$(BIN)/ruff format src tests benchmarks experiments

check: $(READY)
	$(BIN)/ruff check src tests benchmarks experiments
	$(BIN)/ruff format --check src tests benchmarks experiments
	$(BIN)/pyright

benchmarks: $(READY)
	$(BIN)/python benchmarks/bench_view.py
	$(BIN)/python benchmarks/bench_decode.py
	$(BIN)/python benchmarks/bench_oracle.py
	$(BIN)/python benchmarks/bench_train.py
	$(BIN)/python benchmarks/bench_train_gates.py
	$(BIN)/python benchmarks/bench_tokens.py

clean:
	rm -rf $(DEMO) build dist
