# make demo   install, write synthetic CTs, train a model for a few minutes
# make test   linter, type checker and all tests
# make test-oldest    all tests with the oldest supported versions, in .venv-oldest
# make release-check  build the files of a release into dist/ and check them

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
	@sed -n 's/^# make/make/p' Makefile

install: $(VENV)/.installed

# torch is installed first, so that no other package selects its build. PyPI has builds with CUDA for some platforms.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "constraints.txt needs Python 3.11 or newer; 'make PYTHON=python3.12 ...' selects one" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(DEMO)/luna/candidates.csv: | $(VENV)/.installed
	rm -rf $(DEMO)/luna
	$(BIN)/luna-monai synth $(DEMO)/luna --scans 32 --in-plane 256 --slices 112 \
		--candidates-per-scan 170 --nodules-per-scan 24 --num-workers $(WORKERS)

demo: $(VENV)/.installed $(DEMO)/luna/candidates.csv
	$(BIN)/luna-monai precache $(DEMO_CONFIG)
	$(BIN)/luna-monai train $(DEMO_CONFIG)

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# One process per core, each with one thread: most tests wait for processes and disks instead of computing.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# PyPI has wheels of these versions for Python 3.10 to 3.12.
$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt torch
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[test]'
	@touch $@

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest --numprocesses auto --dist worksteal

# The wheel is built from the source distribution and must equal a wheel built from this folder.
release-check: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m build --no-isolation --wheel --outdir dist/tree
	cmp dist/*.whl dist/tree/*.whl
	$(BIN)/python -m twine check --strict dist/*.whl dist/*.tar.gz
	$(BIN)/check-wheel-contents dist/*.whl

clean:
	rm -rf $(VENV) $(OLDEST) build dist .mypy_cache .pytest_cache .ruff_cache
