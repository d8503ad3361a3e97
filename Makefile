# make demo | test | test-full | drill | tables | format | lint | setup. PYTHON chooses the interpreter, SITE what a site brings itself:
# make setup SITE="--system-mpi --cuda-home /usr/local/cuda"
PYTHON ?= python3
SITE ?=
BIN := .venv/bin

.PHONY: setup demo test test-full drill tables format lint clean

setup: .venv/installed

.venv/installed: requirements.txt setup.py $(wildcard hpcdat/install/*.py)
	@$(PYTHON) -m hpcdat.install $(SITE)
	@touch $@

demo: setup
	$(BIN)/hpcdat train jobs/demo.yaml -np 2 --overwrite
	$(BIN)/hpcdat train jobs/demo.yaml -np 2 --overwrite --set method=plain run_dir=runs/demo-plain
	@echo
	@echo "The digits, trained adversarially and trained plainly:"
	@echo
	@$(BIN)/hpcdat report runs/demo runs/demo-plain

# Tests without workers use one core each, so that two run at a time; those with workers need both.
test: setup
	$(BIN)/python -m pytest -m "not full and not distributed" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "not full and distributed"

# Slow tests: every drill, three-seed statistics, the rates of emulated links.
test-full: setup
	$(BIN)/python -m pytest -m full --ignore tests/test_every_job.py
	$(BIN)/python -m pytest -m full -n 2 tests/test_every_job.py

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
	rm -rf .venv runs build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
