# Every target sets up what it needs: a virtual environment in .venv, with the versions of constraints.txt.
# Choose the interpreter with `make PYTHON=python3.12 ...`, pass options with `make test PYTEST_ARGS='-k scheme -x'`.

PYTHON ?= python3
PYTEST_ARGS ?=
RUN_ARGS ?=

BIN := .venv/bin
READY := .venv/.ready
CACHES := .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Tests start some hundred processes: modules that are compiled already save each a fifth of its start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test check format wheel-test clean

help:
	@echo 'make run         discover a scheme, prove it, multiply real matrices with it'
	@echo 'make test        all tests'
	@echo 'make check       lint, formatting, types, import layers, GPU kernels compiled, shipped catalog'
	@echo 'make wheel-test  build a wheel and try it in an empty environment'
	@echo 'make format      put all files into the standard format'
	@echo 'make clean       delete caches and build products (.venv stays)'

# A half-made environment (an interrupted set-up, a Python without venv) has no pip and is made anew.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stl-search needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo 'Setting up .venv (the first time this downloads torch and takes minutes) ...'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@

run: $(READY)
	@$(BIN)/python benchmarks/demo.py $(RUN_ARGS)

test: $(READY)
	@$(BIN)/pytest -n auto $(PYTEST_ARGS)

check: $(READY)
	@echo '== lint and formatting'
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check .
	@echo '== types'
	@$(BIN)/mypy
	@echo '== import layers'
	@$(BIN)/pytest -q tests/test_layers.py
	@echo '== GPU kernels, compiled without a GPU'
	@$(BIN)/python -m stl_search.kernels.aot
	@echo '== shipped catalog'
	@find catalog -path 'catalog/schemes/*.json' -exec $(BIN)/stl-search verify {} +

format: $(READY)
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format .

wheel-test: $(READY)
	@$(BIN)/python tests/wheel_test.py

clean:
	@rm -rf build dist *.egg-info $(CACHES)
	@find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
	@echo 'Clean. Delete .venv too for a new set-up.'
