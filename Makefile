# Every target sets up what it needs in .venv; after the first time it starts at once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BENCH  := $(VENV)/.bench
COMPILED := $(VENV)/.compiled

# How long the campaigns are.
KILLS  ?= 1000
BODIES ?= 100000
KILLS_ON_RAY ?= 40
SEED   ?= 0

# What is timed (all), and where its tables and plots go.
PART   ?=
OUT    ?= build/bench

.DEFAULT_GOAL := help
.PHONY: help setup demo test check conformance fuzz crash-test cluster-test image-check bench serve clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) $(COMPILED)  ## create .venv and install the server, the client and the test tools

$(READY): pyproject.toml setup.py client/pyproject.toml $(wildcard curvserve/engine/native/*.[ch])
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("curvserve needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=/path/to/python")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ./client --editable '.[test]'
	@sh .ci/browser
	@touch $@

# pip compiles what it installs on one core (50 s); here all of them do, beside the type checker, but for the
# parts of large packages that nothing here imports, and as with pip a file that is no Python of this version
# is left as it is
UNUSED := /tests?/|transformers/models/|ray/(rllib|data|serve|tune|train)/|torch/_inductor/|torch/testing/_internal/|site-packages/pip/
$(COMPILED): $(READY)
	@$(BIN)/python -m compileall -qq -j 0 -x '$(UNUSED)' $(VENV)/lib curvserve client tests || true
	@touch $@

demo: $(READY)  ## serve mnist_cnn, train it over HTTP on handwritten digits, print what happens
	$(BIN)/curvserve demo

test: $(READY)  ## lint, types and the whole test suite
	@$(MAKE) --no-print-directory -j2 check $(COMPILED)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses=8 --dist loadfile --no-loadscope-reorder

check: $(READY)  ## lint and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

conformance: $(READY)  ## the engine on torchvision's architectures and on every quantity, layer and loss (minutes)
	$(BIN)/python -m pytest tests/conformance $(patsubst %,tests/engine/test_%.py,product parts conduct hessian) -m "" -v

fuzz: $(READY)  ## 100,000 mutated bodies at a live server, then its contract at random (BODIES=, SEED=)
	$(BIN)/python -m tests.fuzz --bodies $(BODIES) --seed $(SEED)
	$(BIN)/python -m pytest tests/server/test_contract.py tests/server/test_schema.py --hypothesis-profile=fuzz -p no:randomly --hypothesis-seed=$(SEED) --hypothesis-show-statistics

crash-test: $(READY)  ## kill a server 1,000 times while clients train, then a bad network (20 minutes; KILLS=, SEED=)
	$(BIN)/python -m tests.crash --kills $(KILLS) --seed $(SEED)
	$(BIN)/python -m pytest tests/network -m campaign

cluster-test: $(READY)  ## workers on Ray: every rule, quantity and convention, the contract, then kills (30 minutes; KILLS_ON_RAY=, SEED=)
	$(BIN)/python -m pytest tests/cluster -m "" -v
	$(BIN)/python -m tests.cluster.contract
	$(BIN)/python -m tests.cluster.campaign --kills $(KILLS_ON_RAY) --seed $(SEED)

image-check: $(READY)  ## the steps of docker/Dockerfile without Docker, and a server from what they give (a minute)
	$(BIN)/python -m pytest tests/deployment/test_dockerfile.py -m "" -v

$(BENCH): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ./client --editable '.[bench]'
	@touch $@

bench: $(BENCH)  ## every table and plot of docs/performance.md, into build/bench (PART=, OUT=)
	$(BIN)/python -m benchmarks $(PART) --out $(OUT)

serve: $(READY)  ## serve mnist_cnn on http://127.0.0.1:8000
	$(BIN)/curvserve serve --model mnist_cnn

clean:  ## remove .venv and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
