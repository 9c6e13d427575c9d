# Everything a user or CI needs. `make run` and `make test` work on a machine with nothing but Python 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export RAY_AUTH_MODE ?= disabled

.DEFAULT_GOAL := help
.PHONY: help run test browser check lint types contracts infra bench gpu miniature clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

run: $(VENV)/.installed  ## install, then run the quickstart: corpus to scores to export, on this machine
	$(BIN)/espan run pipelines/recipes/quickstart.yaml

test: $(VENV)/.installed-dev $(VENV)/kernels/.installed browser  ## run the tests in two processes, of which one starts clusters
	$(BIN)/python -m pytest -q --numprocesses 2

browser: $(VENV)/.installed-dev  ## a Chromium for the tests of report pages, unless there is one
	bash tests/browser.sh $(BIN)/python

check: lint types contracts infra test  ## everything CI runs: lint, types, import contracts, Terraform, tests

lint: $(VENV)/.installed-dev  ## ruff: style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy
	$(BIN)/mypy

contracts: $(VENV)/.installed-dev  ## which package may import which
	$(BIN)/lint-imports

infra:  ## format, validate and test the Terraform modules
	bash infra/check.sh

bench: $(VENV)/.installed  ## what attention costs on this machine, against its peers and the targets
	$(BIN)/python benchmarks/attention.py --device cpu

miniature: $(VENV)/.installed  ## what retrieval is worth, at a small scale, and its tables (two hours)
	$(BIN)/espan run pipelines/recipes/miniature.yaml
	$(BIN)/python -m benchmarks.miniature

gpu: $(VENV)/.installed-dev  ## with a CUDA GPU: the tests that need one, then what attention and recurrences cost
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(BIN)/python -m pytest -q -m gpu && $(BIN)/python benchmarks/attention.py --device cuda --preset paper \
		&& $(BIN)/python -m benchmarks.recurrence --device cuda && $(BIN)/python -m benchmarks.readme; \
	else \
		echo "nothing run: torch finds no CUDA device here (benchmarks/README.md says what a GPU needs)"; \
	fi

clean:  ## remove the environment; runs/ stays
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name it with PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version: asked for loosely, another package may bring a different build of it.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The field's kernels, for tests of our calls to them. In a folder of their own, which only those tests look into:
# transformers would take what it can import of them, and fail on a CPU. Without CUDA their builds compile nothing.
$(VENV)/kernels/.installed: constraints.txt | $(VENV)/.installed-dev
	MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE \
	CAUSAL_CONV1D_FORCE_BUILD=TRUE CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE \
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade --target $(VENV)/kernels \
		--no-deps --no-build-isolation causal-conv1d fla-core mamba-ssm
	@touch $@
