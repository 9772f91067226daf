# The tasks, by name. Their settings live in pyproject.toml.
#   make demo    the shell on three simulated hosts (or a short tour, without a terminal)
#   make test    everything: style, types, imports, tests, real hosts where this machine can
#   make check   style, types and imports alone
#   make bench   figures beside the peers', as ratios

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test check bench clean lab-packages
.DELETE_ON_ERROR:

demo: $(VENV)/.runtime
	@$(BIN)/python -m vagoth.shell.demo

test: lab-packages $(VENV)/.dev
	@$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: lab-packages $(VENV)/.dev
	$(BIN)/python -m benchmarks

# Debian's packages for the test lab and to build libvirt-python; says why where it cannot.
lab-packages:
	@tests/lab/install || echo "the tests on real hosts will be skipped, each with the reason" >&2

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

# libvirt-python is built from source: without its headers all else is still tested.
$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[notebook,pandas,dev]'
	@if pkg-config --exists libvirt 2>/dev/null; then \
	    $(BIN)/python -m pip install --quiet --editable '.[libvirt]'; \
	else \
	    echo "libvirt's headers are not installed: what needs libvirt-python is skipped" >&2; \
	fi
	@touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
