# Every target works on a fresh clone: the virtual environment is made on first use.
PYTHON ?= python3
VENV ?= .venv
EPOCHS ?= 20
SEEDS ?= 1
OUT ?= build/gpu
BUDGET ?= 840
BIN := $(VENV)/bin
# A process a core, since each test computes on one.
PARALLEL := -n auto --maxprocesses 4
# The pair the project is tested with; pyproject.toml says what it supports.
PINS := torch==2.13.0 triton==3.7.1

.PHONY: demo test test-all check docs bench gpu clean

$(VENV)/ready: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(PINS)
	$(BIN)/pip install --quiet --editable .[test,examples,bench,docs]
	touch $@

demo: $(VENV)/ready
	$(BIN)/python examples/forecasting.py --epochs $(EPOCHS) --seeds $(SEEDS)

test: $(VENV)/ready
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-all: $(VENV)/ready
	$(BIN)/python -m pytest $(PARALLEL)

check: $(VENV)/ready docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m benchmarks report --check

# Into build/site; a link that leads nowhere fails it.
docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# On the CPU, in 14 minutes at most; what is stored already is not measured again.
bench: $(VENV)/ready
	$(BIN)/python -m benchmarks run --budget $(BUDGET)
	$(BIN)/python -m benchmarks report

# Needs only a python3 with torch, triton, numpy and pytest: no network, no environment, no install.
gpu:
	$(PYTHON) -m benchmarks gpu --out $(OUT)

clean:
	rm -rf $(VENV) build *.egg-info
