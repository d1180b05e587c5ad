# `make demo` and `make test` are all that a fresh machine needs; both make .venv where there is none.
PYTHON ?= python3
BIN := .venv/bin
# A process for each core, with one thread each: most tests are too small for more.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: demo test test-all lint docs

demo: .venv/installed
	$(BIN)/python -m benchmarks.demo

test: .venv/installed
	$(TESTS) -m "not slow"

test-all: .venv/installed
	$(TESTS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python -m sphinx --fail-on-warning --quiet docs docs/_build/html

.venv/installed: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
