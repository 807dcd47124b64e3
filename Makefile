# make demo: set everything up, run the whole method on the embedded task. make test: set everything up, run the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.PHONY: demo test test-slow lint clean help

help:
	@echo "make demo       set up, run the whole method on the embedded task (ARGS='--seed 1' for more)"
	@echo "make test       set up, run the tests"
	@echo "make test-slow  the tests that take longer"
	@echo "make lint       ruff, mypy"

demo: $(STAMP)
	$(BIN)/semievol demo $(ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not gpu and not network and not slow" --durations=5 $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --durations=5 $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt tools/setup.sh
	PYTHON=$(PYTHON) VENV=$(VENV) sh tools/setup.sh
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
