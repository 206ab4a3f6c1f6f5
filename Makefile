# Every target sets itself up in .venv: a machine needs python3 (3.11 or newer, with venv) and make, nothing else.
# `make` alone lists the targets.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Many small matrix products: more threads only wait for each other.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all coverage lint format fuzz odd-models train wheel wheel-check clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

# Stamps, so that a second run starts at once. `demo` needs the run-time dependencies only.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/core.stamp: pyproject.toml | .venv/bin/python
	$(PIP) --editable .
	@touch $@

.venv/dev.stamp: pyproject.toml | .venv/bin/python
	$(PIP) --editable '.[dev]'
	@touch .venv/core.stamp $@

demo: .venv/core.stamp ## quantize the network that ships with the project and compare
	$(BIN)/python -m models.demo

test: lint ## everything that has to pass: lint, then the tests and the examples in the docstrings
	$(BIN)/python -m pytest -n auto -m "not slow"

test-all: lint ## the same, and the end-to-end matrices on the shared networks, which take long
	$(BIN)/python -m pytest -n auto

coverage: .venv/dev.stamp ## lines and branches that the tests reach
	$(BIN)/python -m pytest -n auto -m "not slow" --cov=onnx_dfmpc --cov-branch --cov-report=term-missing:skip-covered

lint: .venv/dev.stamp ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev.stamp ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

MINUTES ?= 10
fuzz: .venv/dev.stamp ## mutated models for MINUTES=10, each quantized or refused with a reason
	$(BIN)/python -m benchmarks.fuzz --minutes $(MINUTES)

odd-models: .venv/dev.stamp ## 200 models as users have them, each against its float model
	$(BIN)/python -m benchmarks.odd_models --output benchmarks/results/odd_models.md

train: .venv/core.stamp ## train the shipped network again (installs torch)
	$(PIP) --editable '.[train]'
	$(BIN)/python -m models.train

wheel: .venv/dev.stamp ## build dist/*.whl
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation

wheel-check: wheel ## install the wheel in an empty environment and quantize with it
	rm -rf build/wheel-check
	$(PYTHON) -m venv build/wheel-check
	build/wheel-check/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd build/wheel-check && bin/onnx-dfmpc --version
	cd build/wheel-check && bin/onnx-dfmpc quantize ../../models/digits_resnet_bn.onnx -o small.onnx --low-bits 2 --high-bits 6
	cd build/wheel-check && bin/onnx-dfmpc validate ../../models/digits_resnet_bn.onnx small.onnx --data ../../models/digits_test.npz

clean: ## remove the environment and everything that was built
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
