# make demo   from a fresh clone to a trained, inspected model
# make test   lint, types and all tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS := $(shell $(PYTHON) -c "import os; print(os.cpu_count())" 2>/dev/null || echo 1)
DEMO := data-unversioned/demo
DEMO_CONFIG := --config synthetic --config demo

.DEFAULT_GOAL := help
.PHONY: help install demo test lint clean

help:
	@sed -n 's/^# //p' Makefile

install: $(VENV)/.installed

# torch comes first and alone: on its own it is the release that is pinned, with CUDA where the platform's has it.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; 'make PYTHON=python3.12 ...' chooses one" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(DEMO)/luna/candidates.csv: | $(VENV)/.installed
	$(BIN)/luna-monai synth $(DEMO)/luna --scans 32 --in-plane 256 --slices 112 \
		--candidates-per-scan 170 --nodules-per-scan 24 --num-workers $(WORKERS)

demo: $(VENV)/.installed $(DEMO)/luna/candidates.csv
	$(BIN)/luna-monai precache $(DEMO_CONFIG)
	$(BIN)/luna-monai train $(DEMO_CONFIG)

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# A process a core, each with one thread: most tests wait for processes and disks rather than compute.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
