# Everything runs in .venv; nothing has to be activated. `make` alone lists the targets.
# Arguments for the command behind a target: make train ARGS="epochs=2", make test ARGS="-k loader -x".

# The first of these that runs; another one with `make setup PYTHON=/path/to/python3.11`.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
BIN := .venv/bin
# Two tests at a time, each on one thread: threads that wait for one another's cores are slower than one. A process
# takes neighbours, which share fixtures, and helps the other one at the end.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
# Written last, so an interrupted installation is taken up again.
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup check train test test-slow test-gpu test-cluster test-image lint format lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## make .venv and install everything (about 7 GB); instant when nothing changed

$(STAMP): requirements-dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 is needed and '$(PYTHON)' is not: install it (Debian, Ubuntu: apt-get install python3.11 python3.11-venv) or say where it is with 'make setup PYTHON=/path/to/python3.11'." >&2; \
		exit 1; }
	@# A .venv without pip is what an earlier attempt without ensurepip left behind.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { \
		echo "'$(PYTHON) -m venv' failed. If ensurepip is missing, install Python's venv package (Debian, Ubuntu: apt-get install python3.11-venv) and try again." >&2; \
		exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.lock
	@touch $@

train: setup ## train a small model on the embedded images, with or without a GPU
	$(BIN)/python train.py experiment=quickstart $(ARGS)

check: setup ## check this machine in about two minutes: ARGS="--data-root /path/to/imagenet"
	$(BIN)/python scripts/check_machine.py $(ARGS)

test: setup ## run all but the slow tests
	$(PYTEST) -m "not slow and not cluster and not image" $(ARGS)

test-slow: setup ## run the slow tests
	$(PYTEST) -m slow --durations=25 --durations-min=20 $(ARGS)

test-gpu: setup ## run the tests that need a GPU, on one or more, and list what ran
	$(BIN)/python -m pytest -n 4 --dist worksteal -m gpu $(ARGS)

test-cluster: setup ## run the SLURM script on a small cluster (needs root; installs Debian packages), and list what happened
	@# The test files beside each other, each with a cluster of its own: they mostly wait.
	$(BIN)/python -m pytest -n 3 --dist loadfile -m cluster tests/cluster $(ARGS)

test-image: setup ## build the Docker image without Docker and train in it (needs root, 30 GB; installs buildah)
	$(BIN)/python -m pytest -m image tests/image $(ARGS)

lint: setup ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup ## fix what ruff can fix, then format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: setup ## write the lock files again after a change of requirements*.txt
	for name in requirements requirements-dev; do \
		$(BIN)/uv pip compile $$name.txt --quiet --universal --python-version 3.11 --generate-hashes \
			--no-emit-index-url --no-annotate --no-header --output-file $$name.lock; \
	done
