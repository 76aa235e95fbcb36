# make demo   from a fresh clone to a trained, inspected model
# make test   lint, types and all tests
# make test-oldest    all tests with the oldest versions that are supported, in .venv-oldest
# make release-check  what a release uploads, built into dist/ and checked

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
WORKERS := $(shell $(PYTHON) -c "import os; print(os.cpu_count())" 2>/dev/null || echo 1)
DEMO := data-unversioned/demo
DEMO_CONFIG := --config synthetic --config demo

.DEFAULT_GOAL := help
.PHONY: help install demo test test-oldest lint release-check clean

help:
	@sed -n 's/^# //p' Makefile

install: $(VENV)/.installed

# torch comes first and alone: on its own it is the release that is pinned, with CUDA where the platform's has it.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "constraints.txt needs Python 3.11 or newer; 'make PYTHON=python3.12 ...' chooses one" >&2; exit 1; }
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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# Python 3.10 to 3.12 have wheels of these versions.
$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt torch
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[test]'
	@touch $@

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest --numprocesses auto --dist worksteal

# The wheel that is uploaded comes from the source distribution, and is the same as that of this folder.
release-check: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m build --no-isolation --wheel --outdir dist/tree
	cmp dist/*.whl dist/tree/*.whl
	$(BIN)/python -m twine check --strict dist/*.whl dist/*.tar.gz
	$(BIN)/check-wheel-contents dist/*.whl

clean:
	rm -rf $(VENV) $(OLDEST) build dist .mypy_cache .pytest_cache .ruff_cache
