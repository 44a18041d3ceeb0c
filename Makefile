PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test slow bench clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /: /'

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

demo: $(VENV)/.installed ## the main job: quantize and prune the small CNN, every number measured
	$(BIN)/python -m mlperf_opt model=cnn 'passes=[quant,prune]'

test: $(VENV)/.installed ## lint, types and all tests but the slow ones
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -n 2 -m 'not slow'

slow: $(VENV)/.installed ## the slow tests
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.installed ## the KV cache: what it saves and what it changes, one thread
	$(BIN)/python benchmarks/kv_cache.py
	$(BIN)/python benchmarks/kv_cache_exact.py

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
