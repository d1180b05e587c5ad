# `make demo` and `make test` are all that a fresh machine needs; both make .venv where there is none.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint docs

demo: .venv/installed
	$(BIN)/python -m benchmarks.demo

test: .venv/installed
	$(BIN)/python -m pytest -m "not slow"

test-all: .venv/installed
	$(BIN)/python -m pytest

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
