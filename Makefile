# make setup   a virtual environment in .venv, with every version pinned by constraints.txt
# make demo    draw a data set, pre-train both stages on two ranks, evaluate
# make test    all tests
# make lint    style and types
# make gpu     on a machine with a GPU: kernel tests, memory checks, and the benchmark into docs/benchmarks/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := $(shell grep '^torch==' constraints.txt)
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: setup demo test lint gpu clean

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
	$(BIN)/python -m tests.parity tests/golden
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

SANITIZER := $(shell command -v compute-sanitizer)
SMALL := --batch 2 --grid 3 5 --samples 7 15 --rounds 1

gpu: $(READY)
	$(BIN)/python -m pytest tests/kernels
	$(if $(SANITIZER),$(SANITIZER) --error-exitcode 1 $(BIN)/python -m kernels.benchmark --device cuda $(SMALL),@echo "no compute-sanitizer here")
	$(BIN)/python -m kernels.benchmark --device cuda --json docs/benchmarks/kernels_gpu.json --plot docs/benchmarks/kernels_gpu.png

clean:
	rm -rf $(VENV) data/demo snap/demo
