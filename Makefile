# `make demo` and `make test` do everything, set-up included. Elsewhere: make test VENV=/tmp/venv PYTHON=python3.12

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Whether what pip would install, as its report says, includes packages of CUDA.
WANTS_CUDA := import json, sys; \
  sys.exit(not any(p["metadata"]["name"].startswith("nvidia") for p in json.load(sys.stdin)["install"]))
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test check clean

demo: $(VENV)/.installed  ## perplexity of the bundled models, within and beyond their training length
	$(BIN)/hope-eval ppl --samples 10

test: $(VENV)/.installed-dev  ## the tests that need no GPU, no network and no patience
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)

# Only what is used is compiled, when it is used first: a minute less. torch first: a machine without an NVIDIA GPU gets
# the CPU build and not gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Error: $(PYTHON) is older than Python 3.11"; echo "hint: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null || ! $(PIP) install --quiet --dry-run --report - $(TORCH) | $(PYTHON) -c '$(WANTS_CUDA)'; \
	  then index=; else index="--index-url https://download.pytorch.org/whl/cpu"; fi; \
	  echo "installing $(TORCH) $$index"; $(PIP) install --quiet --no-compile $$index $(TORCH)
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable .
	@touch $@

# Only those who change the project need its tools.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@
