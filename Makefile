# Everything a newcomer needs. `make demo` shows it, `make test` proves it; both do their own set-up.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
WORKERS ?= 2
ROUNDS ?= 5

.PHONY: help setup demo test test-faults bench lint clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## virtual environment from the lock file, and mosquitto

$(STAMP): requirements.lock pyproject.toml deploy/setup.sh
	@PYTHON="$(PYTHON)" bash deploy/setup.sh "$(VENV)"
	@touch $(STAMP)

demo: setup ## the main job, live: devices arrive, are verified, and stand in their product and cohort
	@$(BIN)/fleetgate demo $(ARGS)

test: setup ## the tests (PostgreSQL is installed from Debian where it is absent)
	@bash deploy/setup-postgresql.sh
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

test-faults: setup ## long fault and load runs, at most 20 minutes
	@bash deploy/setup-postgresql.sh
	@$(BIN)/python -m pytest -m faults --timeout 600 $(ARGS)

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
