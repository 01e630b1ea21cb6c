# Twofold: `make` lists the targets.

PYTHON ?= python3
DEVICE ?= cpu
# Arguments for pytest, e.g. make test ARGS="-k doctor"
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# One stamp for each device: the other's set-up does not count.
STAMP := .venv/.setup-$(DEVICE)

ifeq ($(DEVICE),cpu)
# torchrec asks for "fbgemm-gpu": the alias answers to that name and brings the CPU build.
PACKAGES := ./packaging/fbgemm-gpu-cpu-alias -e '.[cpu,demo,graph,dev]'
else ifeq ($(DEVICE),cuda)
PACKAGES := -e '.[cuda,demo,graph,dev]'
else
$(error DEVICE is cpu or cuda, not "$(DEVICE)")
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak lint format doctor clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Install into .venv (DEVICE=cpu or cuda, PYTHON=python3)

# Removing one FBGEMM takes files of the other along, so both go before one is installed. torch goes
# with them when the device changes: pip takes its CPU and CUDA builds for the same version.
$(STAMP): setup.cfg pyproject.toml $(wildcard packaging/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Twofold needs Python 3.11 or newer; $(PYTHON) is older or missing." \
	    "Name another: make setup PYTHON=python3.11" >&2; exit 2; }
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@$(PIP) -qq uninstall -y fbgemm-gpu fbgemm-gpu-cpu $(if $(wildcard $(STAMP)),,torch)
	@rm -f .venv/.setup-*
	$(PIP) install $(PACKAGES)
	$(PIP) check
	@touch $@

demo: setup ## Train DARE and TWIN on a real log and write a report (about a minute)
	$(BIN)/twofold demo

test: setup ## Run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

soak: setup ## Run the long tests: kills, full disks, damaged files, Ray, two hosts (an hour and more)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak --timeout 3600 $(ARGS)

lint: setup ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## Repair style and formatting where ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

doctor: ## Say whether this installation can train
	@$(BIN)/python -m trainer.doctor

clean: ## Remove caches and build leftovers (not .venv, stores or runs)
	rm -rf build .logs .pytest_cache .ruff_cache *.egg-info packaging/*/build packaging/*/*.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
