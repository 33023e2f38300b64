# Start here: `make`. Every target works on a fresh clone; what it needs is made first, and only once.

PYTHON ?= $(or $(shell command -v python3.11),python3)
BIN := .venv/bin
ARGS ?=
ENV_FLAGS ?=
# Test files that run side by side; those that start engines are in one worker (tests/conftest.py).
WORKERS ?= 2
BENCHMARKS ?= ttft many_histories short_requests interference decode long_answer refocus tree kernels

# Nothing here may wait for a model hub; tokenizers warns about forks (vLLM forks) unless told not to use threads.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
demo bench: export TOKENIZERS_PARALLELISM := true

.DEFAULT_GOAL := help
.PHONY: help env model text corpus demo test lint bench wheel clean

help:  ## this list
	@echo "MegaContext for vLLM: a frozen model, an unbounded history."
	@echo
	@echo "  New here?  make demo     (first run: about 5 minutes and 5 GB, nothing outside .venv and ~/.cache/megacontext)"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  One test:            make test ARGS='tests/tree -k fork -x'"
	@echo "  Another interpreter: make env PYTHON=/usr/bin/python3.12"
	@echo "  The environment anew, or for the CPU on a GPU machine: make env ENV_FLAGS='--force --device cpu'"

env:  ## .venv with vLLM for this machine (GPU or CPU) and the tools
	@$(PYTHON) tools/environment.py $(ENV_FLAGS)

model: env  ## the default model, SmolLM2-135M-Instruct
	@$(BIN)/python tools/fetch_model.py

text: model  ## a long plain text: State of the Union addresses, about 360,000 tokens
	@$(BIN)/python tools/fetch_text.py

corpus: env  ## text and code for evaluation and training, with its licences: 110 MB to download
	@$(BIN)/megacontext corpus fetch

demo: model text  ## ask a 135M model about a text 175 times as long as its engine takes
	@$(BIN)/python examples/demo.py $(ARGS)

test: lint model text corpus  ## everything that CI checks (ARGS goes to pytest)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

lint: env  ## ruff and mypy
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/mypy kernels

bench: model text  ## the benchmarks, against stock vLLM, with real servers (ARGS=--quick: just to see whether they work)
	@$(BIN)/python tools/fetch_text.py --all
	@for name in $(BENCHMARKS); do \
		echo "== benchmarks/$$name.py"; $(BIN)/python "benchmarks/$$name.py" $(ARGS) || exit 1; \
	done

wheel: env  ## dist/megacontext_vllm-*.whl
	@rm -rf build
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist

clean:  ## remove what was built and .venv (the model and the text stay in the cache)
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
