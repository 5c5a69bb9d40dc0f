# make run      install, ingest DOCS and serve it on 127.0.0.1:8000
# make install  only the environment
# make test     linters, types and tests
# make clean    remove the environment
#
# Needs Python 3.11+, pip and make. Another interpreter: make PYTHON=python3.12 ...

PYTHON ?= python3
VENV ?= .venv
DOCS ?= tests/data/handbook
LOCK := requirements.lock
BIN := $(VENV)/bin

.PHONY: run install test clean

run: install
	$(BIN)/nvr-rag up "$(DOCS)"

install: $(VENV)/.installed

test: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadgroup

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nvr-rag needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The lock file is a constraints file: it pins whatever the platform's wheels ask for.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(LOCK) -e .
	@touch $@

$(VENV)/.tests: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(LOCK) -e '.[dev,training]'
	@touch $@
