# `make demo` and `make test` need python3 (3.11 or newer) and make, and install the rest into .venv.
PYTHON ?= python3
BIN := .venv/bin
RANKS ?= 2
# Two ranks on one machine: gloo over loopback, one thread per rank.
export OMP_NUM_THREADS ?= 1
export GLOO_SOCKET_IFNAME ?= lo

.PHONY: help demo test test-all gpu lint clean

help:  ## List the targets.
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

demo: .venv/core  ## Render synthetic faces, train Ada-DF in two processes, test once.
	$(BIN)/torchrun --standalone --nproc_per_node $(RANKS) -m adadf_dist.train --preset demo

test: .venv/all  ## All tests but the slow ones; 3 at a time, since tests of several processes often wait.
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not slow and not gpu"

test-all: .venv/all  ## The slow tests too; those marked gpu run where there is a GPU.
	$(BIN)/python -m pytest -n 2 --dist worksteal

gpu: .venv/all  ## On a GPU: its tests, and the speed of its loader, step and training, in ten minutes.
	benchmarks/gpu_check.sh

lint: .venv/all  ## ruff, the words of .dialect, the layers, mypy --strict.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@! git grep -nIiwE -f .dialect -- adadf_dist shards tune benchmarks launch docs "*.md" || { echo "use the terms of CONTRIBUTING.md instead (words: .dialect)"; exit 1; }
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy --strict adadf_dist shards tune

.venv/core: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/all: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

clean:  ## Remove .venv and what was built.
	rm -rf .venv build dist *.egg-info
