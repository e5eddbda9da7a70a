# Two commands do all the set-up: make train, make test. They need Python 3.12, git and make.
PYTHON ?= python3.12
BIN := .venv/bin

.PHONY: train test check faults bench clean

train: .venv/installed
	$(BIN)/python -m provla.train

test: .venv/installed-test
	$(BIN)/python -m pytest -n logical --maxprocesses=8 --dist=worksteal

# What CI checks besides the tests.
check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy provla
	$(BIN)/lint-imports

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . -c constraints.txt
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]' ./plugins/lerobot_policy_provla ./plugins/lerobot_env_provla -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps openpi-client==0.1.2 # asks for numpy 1, and works with 2
	touch $@

.venv/installed-dev: .venv/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

.venv/installed-faults: .venv/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[faults]' -c constraints.txt
	touch $@

# Damage done for real, and what survived it: benchmarks/faults/RESULTS.md; half an hour on two cores.
faults: .venv/installed-faults
	$(BIN)/python benchmarks/faults/run.py

# Each part against what else there is, or against itself before: benchmarks/RESULTS.md; an hour on two cores.
bench: .venv/installed-test
	$(BIN)/python benchmarks/bench.py $(ONLY)

clean:
	rm -rf .venv
