# `make run` and `make test` set up .venv by themselves; everything else runs with it active.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp

.PHONY: run test test-matrix quality style setup kernels bench gpu-check
.DEFAULT_GOAL := run

setup: kernels

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python scripts/fetch_transformers_tests.py
	touch $@

# The compiled pooling kernels, where a compiler is: without them everything runs, only slower.
kernels: $(STAMP)
	@$(BIN)/python hf_qrnn/kernels/build.py --quiet

run: kernels
	$(BIN)/python -m demo.run

test: kernels
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Other versions of torch and transformers, each pair in an environment of its own: long and large.
test-matrix: $(STAMP)
	$(BIN)/python scripts/test_matrix.py

# The goals of speed on this machine's CPU, which should do nothing else.
bench: kernels
	$(BIN)/python benchmarks/bench_layer.py --device cpu --grid paper --check
	$(BIN)/python benchmarks/bench_pooling.py --check

# No set-up: for a machine that has torch and a GPU; CALL=1 or 2 for a part, DRY=1 on a CPU.
gpu-check:
	$(PYTHON) scripts/gpu_check.py $(if $(CALL),--call $(CALL)) $(if $(DRY),--dry)

quality: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
