# Each target makes the environment it needs (.venv); none needs root but bench-fuse.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test soak check bench bench-fuse clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade "pip>=25.1"
	$(PY) -m pip install --quiet --editable . --group dev
	touch $@

demo: $(STAMP)  ## the main job on this machine: S3 server, three Ray nodes, direct, cold and warm
	$(PY) -m examples.quickstart.demo

test: $(STAMP)  ## every test this machine can run; says what was skipped and why
	$(PY) -m pytest -n 2 --dist loadgroup

soak: $(STAMP)  ## readers on all fronts while objects change, processes die, the store fails: make soak MINUTES=30
	$(PY) -m tests.soak --minutes $(or $(MINUTES),3)

check: $(STAMP)  ## format, lint, types, layers
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(STAMP)  ## the measurements of the README, written to benchmarks/results/
	$(PY) -m benchmarks

bench-fuse: $(STAMP)  ## the mount beside JuiceFS, rclone and s3fs; as root, on a machine with /dev/fuse
	$(PY) -m pip install --quiet --group bench
	$(PY) -m benchmarks fuse

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
