# `make demo` and `make test` do all set-up themselves; a second run starts at once.
#
# PYTHON=python3.12 make setup     another interpreter (3.10 to 3.13)
# VENV=path make test              another place for the virtual environment
# JOBS=1 make test                  one test at a time
# PIP_FLAGS="..." make setup       more for pip, such as an index with CPU-only builds of torch

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
JOBS ?= auto
BIN := $(VENV)/bin
STAMP := $(VENV)/.vitembed-installed
# Every script there that measures; pack_* make data that ship.
BENCHMARKS := $(filter-out benchmarks/pack_%.py,$(wildcard benchmarks/*.py))
# On a developer's machine `make check` mends the format, in CI it only looks.
FORMAT_FLAGS := $(if $(CI),--check,)

.PHONY: help setup demo test test-slow check lint bench docs clean

help:
	@echo "make setup   virtual environment in $(VENV) with everything in it"
	@echo "make demo    the whole way on real data, results in demo-out/"
	@echo "make test    all tests but the slow ones"
	@echo "make test-slow  kills, faults and sweeps: the rest of the tests"
	@echo "make check   format, lint, types, tests"
	@echo "make lint    format, lint, types"
	@echo "make bench   speed and quality beside the peers"
	@echo "make docs    docs/cli.md from the command line's own help"
	@echo "make clean   remove what was built (not $(VENV), not your .vitembed)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "vitembed needs Python 3.10 to 3.13, $(PYTHON) is $$($(PYTHON) --version 2>&1): name another with PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(if $(CI),--quiet,) $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/vitembed demo --out demo-out

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) -m slow

lint: $(STAMP)
	$(BIN)/ruff format $(FORMAT_FLAGS) .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy cli

check: lint test

bench: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -c constraints.txt -e '.[bench]'
	@for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(STAMP)
	$(BIN)/python -m vitembed_cli.docs docs/cli.md

clean:
	rm -rf build dist demo-out *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
