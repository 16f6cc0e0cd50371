# Needs Python 3.11 or newer and make; everything else is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PICTURES ?=
OUT ?= demo

.DELETE_ON_ERROR:
.PHONY: demo test check format soak clean help

help:
	@echo "make demo [PICTURES=DIR]  index pictures, search them, write $(OUT)/results.html"
	@echo "make test                 run the tests"
	@echo "make check                lint, formatting and types"
	@echo "make soak                 run the tests that take minutes to hours"
	@echo "make clean                remove what these commands made"

demo: $(VENV)/.installed
	@$(BIN)/costream demo --out "$(OUT)" $(if $(PICTURES),--pictures "$(PICTURES)")

# Two processes of one thread each, a file in one of them: half the time of one process with two.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

soak: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak -n 2 --dist loadfile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$$($(PYTHON) --version) is too old: costream needs Python 3.11 or newer (make PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps make repeated calls fast; a changed pyproject.toml installs again.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf "$(OUT)" build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@echo "kept $(VENV): remove it by hand to install from nothing"
