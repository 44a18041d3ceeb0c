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
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

slow: $(VENV)/.installed ## the slow tests
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.installed ## the short form of all benchmarks: peers, the CPU's limits, decoding, the KV cache
	$(BIN)/python benchmarks/side_by_side.py --short
	$(BIN)/python benchmarks/roofline.py --short
	$(BIN)/python benchmarks/decode.py --short
	$(BIN)/python benchmarks/kv_cache.py
	$(BIN)/python benchmarks/kv_cache_exact.py

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
