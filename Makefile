# Needs Python >= 3.11 and make; everything else goes into .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-long lint types imports check clean

help:
	@echo "make demo   a phantom cohort, both stages, both arms, and runs/demo/report.html, in minutes"
	@echo "make test   the tests"
	@echo "make test-long   those that take minutes: kills by the dozen, several nodes, a grid of 24 cells"
	@echo "make check  lint, types and import rules"

demo: $(READY)
	$(BIN)/hepastage demo --out runs/demo

# a file's tests stay together: what they share (trained cells, pages) is made once
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile $(PYTEST_ARGS)

test-long: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow $(PYTEST_ARGS)

check: lint types imports

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

# rebuilt when what it was made from has changed; a half-made environment has no .ready and is completed
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "hepastage needs Python 3.11 or newer; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs
