# `make help` lists the targets. Nothing is installed outside .venv.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/moembed
# what docs/gguf.md was last held against; not in requirements.lock, for it takes long to build and few need it
LLAMACPP := llama-cpp-python==0.3.36 sentencepiece==0.2.3
# what the demo's training is held against: the commit before it was made faster; or a folder with src/moembed
AGAINST ?= cee2424

.DEFAULT_GOAL := help
.PHONY: help setup demo pipeline bench gpu gpu-ablation test coverage test-slow test-gpu test-interop check fix docs lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: .venv/installed  ## create .venv with the locked versions (skipped when up to date)

.venv/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
		|| { echo "moembed needs Python 3.10 to 3.13; run: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint requirements.lock torch
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	@touch $@

demo: setup  ## pairs -> upcycle -> train 5 minutes -> prove -> search; ARGS="--minutes 1" and so on
	$(RUN) demo $(ARGS)

pipeline: setup  ## every stage of Nomic Embed v2 in miniature, 20 minutes; needs MOEMBED_DATA; ARGS=--resume
	PATH="$(CURDIR)/$(BIN):$$PATH" recipes/mini/pipeline.sh $(ARGS)

bench: ARGS ?= start shared encode peers train demo memory $(addprefix --against ,$(AGAINST)) --out records
bench: setup  ## speed beside peers, 20 minutes on 2 free cores, into records/; ARGS="moe export" for other suites
	$(RUN) bench $(ARGS)

HAS_GPU = $(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit(2)' \
	|| { echo "there is no GPU here that PyTorch can use: run make $@ where there is one"; exit 2; }

gpu: setup  ## the GPU's tests and its benchmark, up to 8 minutes on one GPU, into records/performance-gpu.md
	@$(HAS_GPU)
	@timeout 240 $(BIN)/python -m pytest -m gpu $(ARGS); tests=$$?; \
	timeout 230 $(RUN) bench gpu --out records/performance-gpu.md && exit $$tests

gpu-ablation: setup  ## do experts help? experts behind centroids beside dense twins, three seeds, up to 9 minutes on one GPU
	@$(HAS_GPU)
	$(RUN) experiment recipes/experiments/gpu.yaml --seeds 3 --minutes 8.5 --nice 0 --record records/experiment-gpu.md $(ARGS)

# Two processes of one thread each are done sooner than one of two threads.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: setup  ## the tests, minutes on 2 cores; ARGS="-k router" and so on
	@$(TESTS) $(ARGS)

coverage: setup  ## the tests, and which lines of moembed they run; a third slower where Python is older than 3.12
	@COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
		$(TESTS) --cov --cov-report=term:skip-covered $(ARGS)

test-slow: setup  ## the tests that take long
	$(BIN)/python -m pytest -m slow --timeout 3600 $(ARGS)

test-gpu: setup  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(ARGS)

test-interop: setup  ## our files in llama.cpp itself; builds it from source the first time, 10 minutes and more
	@$(BIN)/python -c 'import llama_cpp, sentencepiece' 2>/dev/null || { \
		echo "installing llama.cpp, built from source: 10 minutes and more without a word, this once"; \
		$(BIN)/python -m pip install --quiet --constraint requirements.lock $(LLAMACPP); }
	$(BIN)/python -m pytest -m interop $(ARGS)

check: setup  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: setup  ## mend what lint and format can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## the site, into build/site; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . build/site
	@echo "open build/site/docs/index.html"

lock:  ## resolve requirements.lock anew (needs uv)
	uv pip compile pyproject.toml --extra dev --extra sentencepiece --extra me5 --extra parser --universal --python-version 3.10 \
		--no-header --no-annotate --no-emit-index-url | grep -vE '^(cuda-|nvidia-|triton|colorama|httpx2-jsfetch)' > requirements.lock

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
