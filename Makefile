# Every target does its own set-up. `make demo` and `make test` are the two that a new user needs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The first Python that fits; set PYTHON=... to choose another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SAMPLES := data/samples
PARALLEL := -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

.PHONY: help install demo test test-fast check format bench up down clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv and install vitpipe into it

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "vitpipe needs Python 3.11, 3.12 or 3.13 with venv; none was found on PATH" >&2; exit 2; }
	@echo "==> making $(VENV) with $$($(PYTHON) --version) and installing vitpipe (torch is large: some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## DICOM and GeoTIFF samples: ingest, tile, fine-tune, evaluate, register
	@echo "==> 1 of 2: CT slices (DICOM)"
	@$(BIN)/vitpipe run $(SAMPLES)/ct-contrast/pipeline.yaml
	@echo
	@echo "==> 2 of 2: Sentinel-2 scenes (GeoTIFF)"
	@$(BIN)/vitpipe run $(SAMPLES)/land-cover/pipeline.yaml

test: $(STAMP) ## all tests, the slow ones too
	@echo "==> running the tests"
	@$(BIN)/python -m pytest $(PARALLEL)

test-fast: $(STAMP) ## the tests that take seconds
	@$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

check: $(STAMP) ## format, lint, types, import layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## format and fix what can be fixed
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

bench: $(STAMP) ## side-by-side ratios against the peers
	@$(BIN)/python -m benchmarks

up: $(STAMP) ## Prefect server, MLflow server and a worker on loopback
	@$(BIN)/vitpipe up

down: $(STAMP) ## stop them
	@$(BIN)/vitpipe down

clean: ## remove what was made, the environment too
	rm -rf $(VENV) data/workspace .mypy_cache .ruff_cache .pytest_cache .hypothesis
