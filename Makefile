# Everything starts here; `make` alone lists the targets. Each one sets up what it needs first (deploy/setup.sh).

PY := .venv/bin/python
# How many tests run side by side: a third of the time they wait. A file's tests stay together: they share servers.
JOBS ?= 3
PYTEST := $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
LAB ?= .lab
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
# where it is set, each of the many processes would compile every file again: 0.4 s
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo lab-up lab-status lab-down check test test-all chaos bench lock clean

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

setup:  ## install what is missing: Debian packages, .venv, the vCenter simulator
	@deploy/setup.sh

demo: setup  ## back up and replicate a VM between two simulated vCenters, told step by step
	$(PY) -m tasks.cli lab demo

lab-up: setup  ## start the lab: Redis, two vCenters, workers, Beat, Flower; state in .lab/ (LAB=folder)
	$(PY) -m tasks.cli lab up --dir "$(LAB)"

lab-status: setup  ## what of the lab runs, and where
	$(PY) -m tasks.cli lab status --dir "$(LAB)"

lab-down: setup  ## stop the lab, also after a crash; its data stay
	$(PY) -m tasks.cli lab down --dir "$(LAB)"

check: setup  ## for every commit: format, lint, types, the quick tests
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PYTEST) -q -m "not slow" --ignore=tests/integration --ignore=tests/lab --ignore=tests/simulator --ignore=tests/chaos

test: setup  ## everything but the slow forms; at most 15 minutes on two cores; what .ci/run runs
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PYTEST) -m "not slow"

test-all: setup  ## everything
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PYTEST)

# a seed of its own each time, which is printed; SEED=... repeats one, as far as moments can be repeated
SEED ?= $(shell od -An -N3 -tu4 /dev/urandom)
# rounds of 20 kills at random moments, after every step was died at five times
ROUNDS ?= 10

chaos: setup  ## kill everything at every step and at random moments; writes benchmarks/chaos.md
	$(PY) -m tests.chaos --seed $(SEED) --rounds $(ROUNDS)

bench:  ## speed beside Borg, restic, Benji, qemu-img, rsync and nbdcopy; writes benchmarks/results.md
	@deploy/setup.sh bench
	$(PY) -m benchmarks.bench_store --runs 3

lock:  ## choose the versions in requirements.lock anew (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --upgrade --extra dev \
		--no-header --no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock

clean:  ## stop the lab and remove everything that can be made again
	@for lab in "$(LAB)" .lab-demo; do \
	  if [ -e "$$lab" ]; then deploy/setup.sh && $(PY) -m tasks.cli lab down --erase --dir "$$lab" || exit 1; fi; \
	done
	rm -rf --one-file-system .build .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
