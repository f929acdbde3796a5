# Both commands set up everything in .venv: `make demo` runs the main job on a real model, `make test` the tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# What an extra of pyproject.toml brings is installed once, and again when that file changes.
TEST := $(VENV)/.ready-test
DEV := $(VENV)/.ready-dev
# One process a core, each with one thread of PyTorch (tests/conftest.py).
PARALLEL := -n logical --maxprocesses 8 --dist worksteal
DEMO := runs/demo

.PHONY: demo test test-all format check benchmarks clean

$(TEST): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $(TEST)

$(DEV): $(TEST)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(DEV)

demo: $(TEST)
	$(BIN)/depthdial study smollm2-135m --adapter elastic --out $(DEMO)

test: $(TEST)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not matrix"

# Also the real model, every product of architectures and routes, and many examples of each property.
test-all: $(TEST)
	$(BIN)/python -m pytest $(PARALLEL) --hypothesis-profile=thorough

format: $(DEV)
	$(BIN)/ruff check --fix src tests benchmarks experiments
	$(BIN)/ruff format src tests benchmarks experiments

check: $(DEV)
	$(BIN)/ruff check src tests benchmarks experiments
	$(BIN)/ruff format --check src tests benchmarks experiments
	$(BIN)/pyright

benchmarks: $(TEST)
	$(BIN)/python benchmarks/bench_view.py
	$(BIN)/python benchmarks/bench_decode.py
	$(BIN)/depthdial warmup smollm2-135m
	$(BIN)/python benchmarks/bench_engine.py
	$(BIN)/python benchmarks/bench_speculation.py
	$(BIN)/python benchmarks/bench_oracle.py
	$(BIN)/python benchmarks/bench_train.py
	$(BIN)/python benchmarks/bench_train_gates.py
	$(BIN)/python benchmarks/bench_tokens.py
	$(BIN)/python -m benchmarks.peers --out runs/peers

clean:
	rm -rf $(DEMO) build dist
