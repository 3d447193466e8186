# swinexplore: `make demo` and `make test` need git, make and Python 3.11 or newer, nothing else.

PYTHON ?= python3
VENV ?= .venv
# Extra arguments for the installation of torch and torchvision, as for their CPU build (see README).
TORCH_ARGS ?=
# Processes that run the tests, a file at a time each. Latencies taken beside other work are found to be disturbed, and repeated.
TEST_JOBS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: demo test check gpu clean

## The main job on embedded data: search a tiny space, print the front, draw it.
demo: $(VENV)/.installed
	$(BIN)/swinexplore search --space demo.yaml --recipe quick --data contours --trials 10 --storage studies/demo.db
	$(BIN)/swinexplore pareto --storage studies/demo.db --plot studies/demo-front.png

## Everything the tests use, then the tests.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile

## Style, types, import layers.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

## On a machine with an NVIDIA GPU: all GPU tests, the paper's ratios, the benchmarks; JSON into benchmarks/results/.
gpu: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/on_gpu.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "swinexplore needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_ARGS) torch torchvision
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps tensorrt-stubs    # for the names and signatures alone: the library is fetched from NVIDIA's own index
	@touch $@
