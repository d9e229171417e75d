# make setup   a virtual environment in .venv, with every version pinned by constraints.txt
# make demo    draw a data set, pre-train both stages on two ranks, evaluate
# make test    all tests
# make lint    style and types
# make gpu     all that a GPU has to show, in eight minutes: docs/benchmarks/gpu.md
#              DEVICE=cpu SMALL=1 rehearses it; PYTHON=python3 WHEELS=DIR runs on a machine where nothing can be fetched

PYTHON ?= python3
NAMED := $(if $(filter-out file,$(origin PYTHON)),$(shell command -v $(PYTHON)))
DEVICE ?= cuda
OUT ?= snap/gpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := $(shell grep '^torch==' constraints.txt)
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: setup demo test lint gpu wheels clean

setup: $(READY)

# torch comes first and alone, so that nothing else decides which build of it is taken. A build for GPUs brings the
# triton that it was made for, which stays; a build for CPUs brings none.
$(READY): setup.py constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "Python 3.10 or newer is needed: make setup PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip show --quiet triton || $(BIN)/python -m pip install --quiet --constraint constraints.txt triton
	grep -v '^triton==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/python launch/demo.py

test: $(READY)
	DS_ACCELERATOR=cpu $(BIN)/python -m tests.parity tests/golden
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The Python that is named has torch already and gets its missing packages from WHEELS; without a name it is .venv's.
gpu: $(if $(NAMED),,$(READY))
	$(or $(NAMED),$(BIN)/python) -m tests.gpu --device $(DEVICE) --out $(OUT) $(if $(WHEELS),--wheels $(WHEELS)) $(if $(SMALL),--small) --only '$(ONLY)'

# What a machine with torch, triton, transformers and pytest lacks, for Python 3.12 on x86-64: 8 MB.
MISSING := hjson pydantic pydantic_core annotated-types typing-inspection einops lmdb lz4 msgpack msgpack_numpy ninja py-cpuinfo
PLATFORMS := $(foreach version,1 2014 _2_17 _2_27 _2_28,--platform manylinux$(version)_x86_64)

wheels: $(READY)
	DS_BUILD_OPS=0 $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(WHEELS) $(shell grep '^deepspeed==' constraints.txt)
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 $(PLATFORMS) --constraint constraints.txt --dest $(WHEELS) $(MISSING)

clean:
	rm -rf $(VENV) data/demo snap/demo
