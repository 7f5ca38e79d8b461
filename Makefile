# Two commands matter: `make demo` sets up and runs a whole night, `make test` sets up and passes the tests.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= online_retail
export NIGHTJAR_DATA ?= ../shared/data

.PHONY: help setup demo test test-slow check real bench-% lock clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1  /p' Makefile

setup: .venv/.done ## Java if it is missing, the virtual environment, everything pinned

.venv/.done: pyproject.toml constraints.txt
	@command -v java >/dev/null || { echo "installing Java 17"; $$(command -v sudo) apt-get update -q && $$(command -v sudo) apt-get install -qy openjdk-17-jre-headless; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q --constraint constraints.txt "torch==2.13.0" --editable ".[dev]"
	@touch $@

demo: setup ## a generated world of 20,000 items and users, a whole night, a back-test, a summary
	$(BIN)/python -m nightjar.demo

test: setup ## what CI runs: lint, types, every test that takes seconds
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup ## the tests that take minutes
	$(BIN)/pytest -m slow

check: setup ## lint and types alone
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

real: setup ## the night and the back-test on real logs: make real DATA=online_retail
	$(BIN)/nightjar run --config conf/$(DATA).yaml
	$(BIN)/nightjar backtest --config conf/$(DATA).yaml
	$(BIN)/nightjar summary --config conf/$(DATA).yaml

bench-quality: setup ## against every single method, tuned: make bench-quality DATA=online_retail, or a folder
	$(BIN)/python -m bench.quality --data $(DATA) $(ARGS)

bench-%: setup ## a benchmark: make bench-night, bench-topk, bench-encode (DEVICE=cuda for a GPU)
	$(BIN)/python -m bench.$* $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

lock: ## writes constraints.txt from the installed environment
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^nightjar' | sed 's/ @ .*//; s/+cpu$$//' > constraints.txt

clean:
	rm -rf build .venv
