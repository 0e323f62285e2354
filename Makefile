# make demo         everything from nothing: install, fetch Gemma 3 270M, cast it, prove it, run it
# make test         install, then the tests
# make nightly      the same with every case of every matrix, not one of each mechanism, with OpenVINO and the model of the demo
# make lint         install, then ruff, mypy and the contracts of the layers
# make conformance  write docs/conformance.md
# make bench        write docs/benchmarks/ (see bench/README.md)
# make manual       write the small models that the manual's commands work on, a folder for each page, into out/manual
# make study        train the two heads of examples/two_heads, measure every variant, write docs/study-two-heads/
# make lock         write requirements.lock from the newest versions that pyproject.toml allows
# make clean        remove the environment and the caches; models/ and out/ stay

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: install demo test nightly lint conformance bench manual study lock clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH := torch==2.13.0
ENVIRONMENT := .venv
BIN := $(ENVIRONMENT)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
MINILM := models/all-minilm-l6-v2
MODEL := models/gemma-3-270m-q4_k_m.gguf
ARTIFACT := out/gemma-3-270m
PROMPT := The capital of France is
PYTEST_OPTIONS ?=
# A worker for each core, up to four; each needs up to 2 GB.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

install: $(ENVIRONMENT)/installed

# PyTorch first and alone: pip then takes the build that the index prefers, and nothing later replaces it.
$(ENVIRONMENT)/torch: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "truecast needs Python 3.11 or newer, but $(PYTHON) is older; pass one with: make PYTHON=…" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments; on Debian install them with: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(ENVIRONMENT)
	$(PIP) install --constraint requirements.lock $(TORCH)
	@touch $@

$(ENVIRONMENT)/installed: $(ENVIRONMENT)/torch requirements.lock pyproject.toml
	$(PIP) install --no-deps --requirement requirements.lock
	$(PIP) install --no-deps --editable .
	$(PIP) check
	@touch $@

$(MODEL): | $(ENVIRONMENT)/installed
	$(BIN)/python scripts/fetch_demo_model.py $@

$(MINILM): | $(ENVIRONMENT)/installed
	$(BIN)/python scripts/fetch_minilm.py $@

demo: $(ENVIRONMENT)/installed $(MODEL)
	$(BIN)/truecast inspect $(MODEL)
	$(BIN)/truecast export $(MODEL) $(ARTIFACT) --force
	$(BIN)/truecast verify $(ARTIFACT)
	$(BIN)/truecast run $(ARTIFACT) "$(PROMPT)" --max-new-tokens 32
	@echo "The artifact is in $(CURDIR)/$(ARTIFACT)"

# The tests of the real model run where `make demo` has fetched it.
test: $(ENVIRONMENT)/installed
	TRUECAST_GEMMA_GGUF=$(abspath $(wildcard $(MODEL))) $(BIN)/python -m pytest $(PARALLEL) $(PYTEST_OPTIONS)

nightly: export TRUECAST_TESTS := all
nightly: $(ENVIRONMENT)/installed $(MODEL)
	$(PIP) install --no-deps 'openvino>=2026.4' openvino-telemetry
	$(MAKE) test

lint: $(ENVIRONMENT)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

conformance: $(ENVIRONMENT)/installed
	$(BIN)/python -m tests.conformance.report

bench: $(ENVIRONMENT)/installed $(MODEL) $(MINILM)
	$(BIN)/python bench/environments.py .bench/environments
	$(BIN)/python bench/decoder.py
	$(BIN)/python bench/importing.py
	$(BIN)/python bench/perplexity.py $(MODEL)
	$(BIN)/python bench/encoders.py

manual: $(ENVIRONMENT)/installed
	$(BIN)/python -m tests.docs.folders out/manual

models/two-heads/model.safetensors: examples/two_heads/train.py | $(MINILM)
	$(BIN)/python examples/two_heads/train.py $(MINILM) $(@D)

study: $(ENVIRONMENT)/installed models/two-heads/model.safetensors
	$(PIP) install --no-deps 'torchao>=0.18'
	$(BIN)/truecast study examples/two_heads/plan.toml --out out/two-heads
	mkdir -p docs/study-two-heads
	cp out/two-heads/report.md out/two-heads/report.html out/two-heads/report.json docs/study-two-heads/

lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install $(TORCH)
	build/lock/bin/pip install --editable '.[dev,genai]'
	{ grep '^#' requirements.lock; build/lock/bin/pip freeze --exclude-editable | sed 's/+cpu$$//'; } > build/requirements.lock
	mv build/requirements.lock requirements.lock

clean:
	rm -rf $(ENVIRONMENT) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache src/*.egg-info
