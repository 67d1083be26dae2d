# Every target sets up what it needs: `make test` and `make demo` work on a fresh clone and start at once
# when nothing has changed since the last run.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Stamps live inside the environment: deleting it brings everything back.
DEPENDENCIES := $(VENV)/.dependencies-installed
PACKAGE := $(VENV)/.package-installed
BUILD_LOG := build/install.log
# Of the build's output, one line per compiled file: ninja's [n/m], the module, the source.
PROGRESS := /^ *\[[0-9]+\/[0-9]+\] / { \
  module = source = ""; \
  for (i = 2; i <= NF; i++) { \
    if (sub(/^-DTORCH_EXTENSION_NAME=/, "", $$i)) module = $$i; \
    if ($$i ~ /\.(cpp|cu)$$/) { source = $$i; sub(/.*csrc\//, "csrc/", source) } \
  } \
  print "  " $$1, module, source; fflush() \
}
SOURCES := $(shell find csrc -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' \) 2>/dev/null)

.PHONY: help demo test bench gpu lint clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(PACKAGE) ## train a model with plain PyTorch and with the fused kernels, side by side
	$(BIN)/dgm-fast demo --out out/demo

# A broken build must be red here; elsewhere the package falls back to plain PyTorch.
test: export DGM_FAST_REQUIRE_EXTENSION = $(if $(filter 1,$(DGM_FAST_NO_EXTENSION)),0,1)
test: $(PACKAGE) ## run the tests (PYTEST_ARGS adds options)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(PACKAGE) ## time every op against eager PyTorch and torch.compile; table, result file, page
	$(BIN)/dgm-fast perf run
	$(BIN)/dgm-fast perf report

# Takes the python3 that holds a CUDA build of torch, not the environment made here.
gpu: ## GPU tests and benchmarks
	$(PYTHON) benchmarks/gpu.py

lint: $(DEPENDENCIES) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove what was built (keeps .venv and out/)
	rm -rf build dist dgm_fast.egg-info dgm_fast/*.so $(PACKAGE) $(PACKAGE).new
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find dgm_fast kernels tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	rm -rf $(VENV)

$(DEPENDENCIES): requirements-torch.txt requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  v >= (3, 11) or sys.exit(f"dgm_fast needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]} (set PYTHON=...)")'
	@echo "== creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "== installing PyTorch (takes minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements-torch.txt
	@echo "== installing the other requirements"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.txt
	@touch $@

# ninja is found through PATH. The build is first tried as required; when it fails and is not required, the
# package is installed without it and no stamp is left, so that the next run tries again. The stamp has the
# time at which the build began: a source edited meanwhile is newer.
$(PACKAGE): $(DEPENDENCIES) pyproject.toml setup.py $(SOURCES)
	@mkdir -p build
	@touch $@.new
	@echo "== building the C++ kernels and installing dgm_fast (log: $(BUILD_LOG))"
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; \
	install() { \
	  python -m pip install -v --disable-pip-version-check --no-build-isolation --no-deps -e . 2>&1 \
	    | tee $(BUILD_LOG) | awk '$(PROGRESS)'; \
	}; \
	if DGM_FAST_REQUIRE_EXTENSION=1 install; then \
	  [ "$${DGM_FAST_NO_EXTENSION:-0}" = 1 ] || mv $@.new $@; \
	else \
	  { grep -E -m 20 -A 3 ' error: |RuntimeError' $(BUILD_LOG) || tail -n 40 $(BUILD_LOG); } >&2; \
	  echo "== the C++ kernels did not build: see $(BUILD_LOG)" >&2; \
	  [ "$${DGM_FAST_REQUIRE_EXTENSION:-0}" != 1 ] || exit 1; \
	  echo "== installing without them; ops run as plain PyTorch" >&2; \
	  rm -f dgm_fast/*.so $@.new; \
	  DGM_FAST_NO_EXTENSION=1 python -m pip install -qq --disable-pip-version-check \
	    --no-build-isolation --no-deps -e .; \
	fi
