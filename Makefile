# `make demo` and `make test` are all that a fresh machine needs: Python 3.11 or newer, make, a C compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := ledger cni projector migrations tests benchmarks spiderledger.py hatch_build.py

.PHONY: demo test lint bench fuzz plans torture torture-crash torture-tail torture-resources torture-model clean

demo: $(VENV)/installed
	$(BIN)/spiderledger demo

test: $(VENV)/developed
	$(BIN)/python -m pytest $(PYTEST)

lint: $(VENV)/developed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/developed
	$(BIN)/python -m benchmarks $(BENCH)

# The CNI plugin under a fuzzer and sanitizers, for so many seconds; `SECONDS=0 RUNS=1000000` counts inputs instead.
fuzz: SECONDS = 60
fuzz: RUNS = -1
fuzz: $(VENV)/developed
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --runs $(RUNS)

# The plans of the hot statements on a ledger of a million addresses, nine of ten released, after ANALYZE.
plans: ROWS = 1000000
plans: $(VENV)/developed
	SPIDERLEDGER_PLAN_ROWS=$(ROWS) $(BIN)/python -m pytest -s tests/test_plans.py -k released

# More of what `make test` does a little of, for hours: kills of agents and servers; events that readers follow while
# sixteen write; calls of a node whose agent must weigh at the end what it did; the product beside a model of what it
# promises. SEED and MODEL_SEED repeat a run's choices.
torture: torture-crash torture-tail torture-resources torture-model fuzz plans

torture-crash: ROUNDS = 1000
torture-crash: $(VENV)/developed
	ROUNDS=$(ROUNDS) $(BIN)/python -m pytest tests/test_crash.py

torture-tail: EVENTS = 1000000
torture-tail: $(VENV)/developed
	EVENTS=$(EVENTS) $(BIN)/python -m pytest tests/test_writers.py

torture-resources: CALLS = 100000
torture-resources: $(VENV)/developed
	CALLS=$(CALLS) $(BIN)/python -m pytest tests/test_resources.py

torture-model: STEPS = 1000000
torture-model: $(VENV)/developed
	MODEL_STEPS=$(STEPS) $(BIN)/python -m pytest -s tests/test_model.py

clean:
	rm -rf $(VENV) .demo build dist

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml hatch_build.py cni/plugin/spiderpool.c
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/developed: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
