PYTHON ?= python3
NAMED := $(if $(filter-out file,$(origin PYTHON)),$(shell command -v $(PYTHON)))
DEVICE ?= cuda
OUT ?= snap/gpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := $(shell grep '^torch==' constraints.txt)
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help setup demo demo-own test test-all test-versions lint format gpu wheels clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 20

setup: $(READY)  ## a virtual environment in .venv, with every version pinned by constraints.txt

# pip compiles one module after another, and compileall as many at a time as there are cores. It fails, at the end, on
# those that are meant for another Python.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

# torch comes first and alone, so that nothing else decides which build of it is taken. A build for GPUs brings the
# triton that it was made for, which stays; a build for CPUs brings none.
$(READY): setup.py constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "Python 3.10 or newer is needed: make setup PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade pip
	$(PIP_INSTALL) $(TORCH)
	$(BIN)/python -m pip show --quiet triton || $(PIP_INSTALL) --constraint constraints.txt triton
	grep -v '^triton==' constraints.txt > $(VENV)/constraints.txt
	$(PIP_INSTALL) --constraint $(VENV)/constraints.txt --editable ".[dev]"
	$(COMPILE)
	touch $@

TASKS := vqa

demo: $(READY)  ## draw a data set, pre-train both stages on two ranks, fine-tune (TASKS=all: on all tasks), evaluate
	$(BIN)/python launch/demo.py --tasks $(TASKS)

demo-own: $(READY)  ## photos and captions of one's own: look at them, train, export, and load with transformers alone
	$(BIN)/python launch/demo_own.py

# Three processes share the tests: each has a third, and takes from the others' when it is done. On two cores the third
# one works while another waits.
PYTEST := $(BIN)/python -m pytest -n 3 --dist worksteal

test: $(READY)  ## parity with the original's numbers, and all tests but the slow ones
	DS_ACCELERATOR=cpu $(BIN)/python -m tests.parity tests/golden
	$(PYTEST) -m "not slow"

test-all: $(READY)  ## the slow ones, too: kills, whole runs, every shape of the kernels' gate
	DS_ACCELERATOR=cpu $(BIN)/python -m tests.parity tests/golden
	$(PYTEST)

# In environments of its own, up to 8 GB each while it is tried.
test-versions: $(READY)  ## parity, a resume and the quick tests, with other versions of Python and the libraries
	$(BIN)/python -m tests.versions --only '$(ONLY)'

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## mend style where that can be done by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# DEVICE=cpu SMALL=1 rehearses it. On a machine where nothing can be fetched: PYTHON=python3, which has torch already,
# and gets what it lacks from WHEELS=DIR. Without PYTHON it is .venv's.
gpu: $(if $(NAMED),,$(READY))  ## all that a GPU has to show, in eight minutes: docs/benchmarks/gpu.md
	$(or $(NAMED),$(BIN)/python) -m tests.gpu --device $(DEVICE) --out $(OUT) $(if $(WHEELS),--wheels $(WHEELS)) $(if $(SMALL),--small) --only '$(ONLY)'

# For Python 3.12 on x86-64.
MISSING := hjson pydantic pydantic_core annotated-types typing-inspection einops lmdb lz4 msgpack msgpack_numpy ninja py-cpuinfo
PLATFORMS := $(foreach version,1 2014 _2_17 _2_27 _2_28,--platform manylinux$(version)_x86_64)

wheels: $(READY)  ## into WHEELS=DIR, 8 MB: what a machine with torch, triton, transformers and pytest lacks
	DS_BUILD_OPS=0 $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(WHEELS) $(shell grep '^deepspeed==' constraints.txt)
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 $(PLATFORMS) --constraint constraints.txt --dest $(WHEELS) $(MISSING)

clean:  ## remove the environment, the demos and what was built
	rm -rf $(VENV) build dist data/demo snap/demo data/demo_own snap/demo_own
