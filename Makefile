# Everything a newcomer needs. `make demo` shows it, `make test` proves it; both do their own set-up.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
WORKERS ?= 2
SECONDS ?= 600
DEVICES ?= 2000
ROUNDS ?= 5

.PHONY: help setup demo test test-faults soak herd fuzz fuzz-setup bench lint clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## virtual environment from the lock file, and mosquitto

$(STAMP): requirements.lock pyproject.toml deploy/setup.sh
	@PYTHON="$(PYTHON)" bash deploy/setup.sh "$(VENV)"
	@touch $(STAMP)

demo: setup ## the main job, live: devices arrive, are verified, and stand in their product and cohort
	@$(BIN)/fleetgate demo $(ARGS)

test: setup ## the tests (PostgreSQL and the examples' tools are installed from Debian where they are absent)
	@bash deploy/setup-postgresql.sh
	@bash deploy/setup-examples.sh
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

test-faults: fuzz-setup ## long fault and load runs, at most 20 minutes
	@bash deploy/setup-postgresql.sh
	@$(BIN)/python -m pytest -m faults --timeout 600 $(ARGS)

fuzz: fuzz-setup ## coverage-guided fuzzing of what reads strangers' bytes: make fuzz SECONDS=600
	@$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS) --processes $(WORKERS) $(ARGS)

fuzz-setup: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-fuzz.lock

soak: setup ## four workers, one killed every 20 s, under load; SECONDS=600, and ends by itself
	@bash deploy/setup-postgresql.sh
	@PYTHONPATH=tests $(BIN)/python -m faults.soak --seconds $(SECONDS) $(ARGS)

herd: setup ## devices that come back at once after a broker's restart, and are gone at once; DEVICES=2000
	@bash deploy/setup-postgresql.sh
	@PYTHONPATH=tests $(BIN)/python -m faults.herd --devices $(DEVICES)

bench: setup ## how fast it is, as ratios to the machine's own figures (QUICK=1: below 3 minutes; docs/performance.md)
	@bash deploy/setup-postgresql.sh
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.lock
	@PYTHONPATH=tests $(BIN)/python -m benchmarks --rounds $(ROUNDS) $(if $(QUICK),--quick) $(if $(PUBLISH),--publish)

lint: setup ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean: ## removes the environment and the demo's state
	rm -rf $(VENV) demo build
