# `make demo` and `make test` need python3 (3.11 or newer) and make, and set up the rest in .venv.
PYTHON ?= python3
BIN := .venv/bin
RANKS ?= 2
# Two ranks on one machine: gloo over loopback, one thread a rank.
export OMP_NUM_THREADS ?= 1
export GLOO_SOCKET_IFNAME ?= lo

.PHONY: demo test test-all gpu lint clean

demo: .venv/core  ## Draw faces, train Ada-DF on two processes, test once.
	$(BIN)/torchrun --standalone --nproc_per_node $(RANKS) -m adadf_dist.train --preset demo

test: .venv/all  ## Everything but the slow tests; 3 at a time, since a test of several processes often waits.
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not slow and not gpu"

test-all: .venv/all  ## The slow tests too; those marked gpu run where there is one.
	$(BIN)/python -m pytest -n 2 --dist worksteal

gpu: .venv/all  ## Where there is a GPU: its tests, and the figures of its loader and step.
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m benchmarks data --batch-size 256 --workers 8
	$(BIN)/python -m benchmarks step --batch-size 256 --steps 30 --compile off default cuda-graphs

lint: .venv/all
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

clean:
	rm -rf .venv build dist *.egg-info
