# `make demo` and `make test` set up all they need in $(VENV): nothing but Python and a package registry is assumed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test check format clean

demo: $(VENV)/.installed
	$(BIN)/hybrid-retrieval demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# What the demonstration needs: the plain install and the measures, no torch. `pip install -q` prints nothing but warnings and errors.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing hybrid-retrieval into $(VENV) ..."
	$(PIP) install -q -e ".[evaluate]"
	@touch $@

# torch first and alone: left to a dependency's range, a resolver may take a build of several gigabytes.
$(VENV)/.installed-dev: pyproject.toml constraints-dev.txt | $(VENV)/bin/python
	@echo "Installing hybrid-retrieval with its development tools into $(VENV) ..."
	$(PIP) install -q -c constraints-dev.txt torch
	$(PIP) install -q -c constraints-dev.txt -e ".[dev]"
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
