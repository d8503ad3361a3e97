# make demo | test | test-full | docs | matrix | drill | tables | format | lint | setup
# PYTHON    the interpreter
# TORCH     another version of torch than that of requirements.txt: 2.11 to 2.15, or 2.14-cpu
# ENGINE    torch: without Horovod, MPI and a compiler, as in make demo ENGINE=torch
# SITE      what a site brings itself: SITE="--system-mpi --cuda-home /usr/local/cuda"
PYTHON ?= python3
TORCH ?=
ENGINE ?= horovod
SITE ?=
BIN := .venv/bin
REQUIREMENTS := $(if $(TORCH),requirements/torch-$(TORCH).txt,requirements.txt)
INSTALLED := .venv/installed$(if $(TORCH),-$(TORCH))
ifeq ($(ENGINE),torch)
INSTALLED := $(firstword $(wildcard $(INSTALLED)) $(INSTALLED)-without-horovod)
endif

.PHONY: setup demo test test-full docs matrix drill tables format lint clean

setup: $(INSTALLED)

$(INSTALLED): requirements.txt $(wildcard requirements/*.txt) setup.py $(wildcard hpcdat/install/*.py)
	@$(PYTHON) -m hpcdat.install --requirements $(REQUIREMENTS) --engine $(ENGINE) $(SITE)
	@touch $@

demo: setup
	@$(BIN)/hpcdat demo $(if $(filter torch,$(ENGINE)),engine=torch)

# Tests with workers often wait; others run beside them at low priority, and their output follows.
test: setup
	@$(BIN)/python -m tests.side_by_side

# Slow tests: every drill, three-seed statistics, the rates of emulated links.
test-full: setup
	@$(BIN)/python -m tests.side_by_side --full

# The documentation as a site that needs no network; warnings are errors, and -a renews the navigation of all pages.
docs: setup
	$(BIN)/python -m sphinx -W --keep-going -a -b html docs docs/_build/html
	@echo "the first page: $(CURDIR)/docs/_build/html/index.html"

# For every version of torch: set up, process-free tests, demo; a table. TORCHS chooses them, as in TORCHS="2.13 2.15".
matrix:
	$(PYTHON) -m tests.matrix $(TORCHS)

# Twenty times kill -9 of a random worker at a random moment; the result must be that of an undisturbed run.
drill: setup
	$(BIN)/python -m tests.distributed.drill --kills 20

# Tables 1 and 4 of the DAT paper in miniature, on six emulated nodes (root, iproute2).
tables: setup
	$(BIN)/python benchmarks/tables.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs build docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
