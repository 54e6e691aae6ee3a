# Everything runs in .venv, made on first use and brought up to date when pyproject.toml or constraints.txt change.
# Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
BENCH := $(VENV)/installed-bench
GPU := $(VENV)/installed-gpu
DEV := $(VENV)/installed-dev
TYPES := build/typings/benchbench

.DEFAULT_GOAL := help
.PHONY: help bench bench-gpu smoke test perf lint clean

help: ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

bench: $(BENCH) ## the main job: every long-context case, counted, traced, and measured where it fits
	$(BIN)/benchbench run --suite long-context

bench-gpu: $(GPU) ## the long-context and decode suites on an NVIDIA GPU, Mamba on its own kernels
	$(BIN)/benchbench doctor
	$(BIN)/benchbench run --suite long-context --suite decode --device cuda

smoke: $(BENCH) ## the same job on tiny models, into a folder that is thrown away
	out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && $(BIN)/benchbench run --suite smoke --out "$$out"

test: $(DEV) ## every test but tests/bench
	$(BIN)/python -m pytest

perf: $(DEV) ## benchbench's own speed
	$(BIN)/python -m pytest tests/bench --benchmark-only

lint: $(DEV) $(TYPES) ## ruff and pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

clean: ## all that make made, results apart
	rm -rf $(VENV) build dist *.egg-info .benchmarks .hypothesis .pytest_cache .ruff_cache
	find benchbench models counters suites tests -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "benchbench needs Python 3.11 or later, and '$(PYTHON)' is not: $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name one that is: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(BENCH): pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) .
	@touch $@

# Compiled against the torch that is there, hence without isolation; a wheel that pip once built without kernels must
# not be used again, hence without its cache.
$(GPU): $(BENCH)
	$(BIN)/python -m pip install --quiet ninja packaging setuptools wheel einops transformers nvidia-ml-py
	CAUSAL_CONV1D_FORCE_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE \
		$(BIN)/python -m pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall causal-conv1d mamba-ssm
	@touch $@

# Includes what bench needs, so that bench does not install again after it.
$(DEV): pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) '.[dev,plot,test]'
	@touch $@ $(BENCH)

# pyright cannot follow package-dir: here the folders lie as they are imported.
$(TYPES):
	@mkdir -p $@
	@ln -sfn $(addprefix ../../../,benchbench/__init__.py counters models suites) $@
