# Every target sets itself up in .venv: a machine needs python3 (3.11 or newer, with venv) and make, nothing else.
# `make` alone lists the targets.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Many small matrix products: more threads only wait for each other.
export OMP_NUM_THREADS ?= 1

# Hosts of integrations; each is the name of an extra, and of tests/test_integration_HOST.py.
HOSTS := dask olive onnx-ir polygraphy torch

.DEFAULT_GOAL := help
.PHONY: help demo web-demo web-test test test-all pytest coverage lint format fuzz odd-models train train-cifar train-words train-qat results distilled wheel wheel-check clean rivals generated release-check docs container-check pythons versions check-lowest check-newest integrations $(HOSTS:%=check-%) runtimes

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

.venv/docs.stamp: pyproject.toml | .venv/bin/python
	$(PIP) --editable '.[docs,test]'
	@touch .venv/core.stamp $@

demo: .venv/core.stamp ## quantize the network that ships with the project and compare
	$(BIN)/python -m models.demo

web-demo: .venv/core.stamp ## build a page that reads drawn digits in 2 to 4 bits, into build/web-demo (needs npm)
	$(BIN)/python -m models.web

web-test: .venv/dev.stamp web-demo ## the tests of that page in Chromium
	$(BIN)/python -m pytest tests/test_web.py

# Lint needs one processor only, so that it runs beside the tests.
test: .venv/dev.stamp ## everything that has to pass: lint, the tests and the examples in the docstrings
	$(MAKE) --jobs 2 lint pytest

test-all: .venv/dev.stamp ## the same, and the end-to-end matrices on the shared networks, which take long
	$(MAKE) --jobs 2 lint pytest ONLY=

# Work is stolen in runs of neighbours, so that the tests of a file mostly share what its fixtures made.
ONLY := -m "not slow"
pytest: .venv/dev.stamp
	$(BIN)/python -m pytest -n auto --dist worksteal $(ONLY)

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
fuzz: .venv/dev.stamp ## random networks and mutated models for MINUTES=10: promises kept, or refused with a reason
	$(BIN)/python -m benchmarks.fuzz --minutes $(MINUTES)

odd-models: .venv/dev.stamp ## over 400 models as users have them, each against its float model
	$(BIN)/python -m benchmarks.odd_models --output benchmarks/results/odd_models.md

runtimes: .venv/dev.stamp ## run our files in every runtime that pip and npm can install, and write docs/runtimes.md
	$(BIN)/python -m benchmarks.runtimes

train: .venv/train.stamp ## train the shipped network again (installs torch)
	$(BIN)/python -m models.train

# Networks for the studies, into build/trained; about an hour and a half on two cores, resumable. Training takes all cores.
train-cifar: .venv/train.stamp ## train VGG-16, ResNet-18 and six activation functions on CIFAR-10 for the studies (needs the shared data)
	env -u OMP_NUM_THREADS $(BIN)/python -m models.cifar

train-words: .venv/train.stamp ## train a text classifier for the studies
	env -u OMP_NUM_THREADS $(BIN)/python -m models.words

train-qat: .venv/train.stamp ## train ResNet-20 further, in float and with its rounding
	env -u OMP_NUM_THREADS $(BIN)/python -m models.finetune

.venv/train.stamp: pyproject.toml .venv/dev.stamp
	$(PIP) --editable '.[train]'
	@touch $@

# Resumable: each row is kept as soon as it is measured. Under two hours on two free cores from nothing (about half an hour of one), seconds where nothing is missing.
results: .venv/dev.stamp ## the paper's experiments and its open questions: measure what is missing, write docs/results.md and its charts
	$(BIN)/python -m benchmarks.lambdas --write
	$(BIN)/python -m benchmarks.constants
	$(BIN)/python -m benchmarks.studies --write

# Apart from `results`, since it needs torch, and minutes for each network.
distilled: .venv/train.stamp ## inputs distilled from batch norm, against pictures and real ones; `make results` writes them down
	$(BIN)/python -m benchmarks.sources

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

# Other tools that benchmarks/rivals.py compares with, each in an environment of its own: `make rival-nncf` installs one.
# The versions are those of docs/rivals.md.
RIVALS := aimet-onnx amd-quark nncf nvidia-modelopt onnxruntime onnxsim onnxslim quantization-rs

rivals: $(RIVALS:%=rival-%) ## install the tools that benchmarks/rivals.py compares with (several GB)

$(RIVALS:%=rival-%): rival-%: .rivals/%/installed.stamp

.rivals/%/installed.stamp: benchmarks/baselines/requirements/%.txt
	$(PYTHON) -m venv .rivals/$*
	.rivals/$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# Each host has an environment of its own, with nothing in it but what its extra names.
integrations: $(HOSTS:%=check-%) ## every integration with its host, each in a clean environment; check-HOST for one

$(HOSTS:%=check-%): check-%: build/host-%/stamp
	build/host-$*/bin/python -m pytest -p no:cacheprovider tests/test_integration_$(subst -,_,$*).py

build/host-%/stamp: pyproject.toml
	rm -rf build/host-$*
	$(PYTHON) -m venv build/host-$*
	build/host-$*/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]' hypothesis pytest

generated: .venv/dev.stamp ## schemas, shell completion and the manual page, from the code
	$(BIN)/python -m tools.generated

release-check: .venv/dev.stamp ## a release rehearsed: reproducible files, uploaded to a local index, installed from there
	$(BIN)/python -m tools.release_check

# Every Python that is on the path, from the oldest that is supported to the newest there is.
PYTHONS ?= $(shell for minor in 11 12 13 14 15; do python3.$$minor --version >/dev/null 2>&1 && echo python3.$$minor; done)

pythons: ## the tests with every python3.11 or newer on the path; PYTHONS="python3.13 ..." for some
	@for python in $(PYTHONS); do \
	  echo "== $$python" && rm -rf build/$$python && $$python -m venv build/$$python \
	  && build/$$python/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' \
	  && build/$$python/bin/python -m pytest -q -p no:cacheprovider -n auto -m "not slow" || exit 1; done

# The lowest and the newest versions of the core dependencies that are supported; SLICE="tests/test_storage.py ..." for a part.
SLICE ?=
versions: check-lowest check-newest ## the tests with the lowest and with the newest supported versions of the dependencies

check-lowest check-newest: check-%: pyproject.toml
	rm -rf build/$* && $(PYTHON) -m venv build/$*
	build/$*/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' $$($(PYTHON) -m tools.versions $*)
	build/$*/bin/python -m pytest -q -p no:cacheprovider -n auto -m "not slow" $(SLICE)

container-check: .venv/dev.stamp ## the Dockerfile's steps in an empty root directory, and a newcomer's first minutes (as root; debootstrap)
	$(BIN)/python -m tools.container_check

docs: .venv/docs.stamp ## the documentation site, into build/site: warnings are errors, links and looks are tested
	rm -rf build/site
	$(BIN)/sphinx-build -q -E -W --keep-going -c docs -d build/doctrees . build/site
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_site.py

clean: ## remove the environment and everything that was built
	rm -rf .venv .rivals build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
