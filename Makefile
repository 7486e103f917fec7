# Developer commands; `make` lists them. Each command that needs a virtual environment makes it first.

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1 && echo $$python && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --no-compile \
	--constraint constraints.txt
# What is installed is compiled on all cores; pip would compile it on one.
BYTECODE := $(RUN) -W ignore -m compileall -qq -j 0 $(VENV)/lib || true
SOURCES := snncc tests examples benchmarks

.DEFAULT_GOAL := help
.PHONY: help demo test setup fmt lint types size pytest fuzz check golden bench bench-gpu \
	compatibility examples clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## train a spiking network on speech, serial and compiled, and compare
	$(RUN) examples/speech.py --out out/speech

test: check  ## everything CI runs: lint, types, sizes, all tests

setup: $(VENV)/.setup  ## virtual environment with everything the tests and benchmarks need

fmt: $(VENV)/.setup  ## format and apply safe fixes
	$(RUN) -m ruff format $(SOURCES)
	$(RUN) -m ruff check --fix $(SOURCES)

lint: $(VENV)/.setup  ## ruff, without changing anything
	$(RUN) -m ruff check $(SOURCES)
	$(RUN) -m ruff format --check $(SOURCES)

types: $(VENV)/.setup  ## mypy --strict on the package
	$(RUN) -m mypy

size:  ## no file of the package over 400 lines
	@find snncc -name '*.py' -exec wc -l {} + | awk '$$2 != "total" && $$1 > 400 \
		{print $$2 ": " $$1 " lines, 400 allowed"; bad = 1} END {exit bad}'

pytest: $(VENV)/.setup  ## all tests, documentation and examples included
	OMP_WAIT_POLICY=passive $(RUN) -m pytest --numprocesses auto

fuzz: $(VENV)/.setup  ## property tests on examples that no run has drawn before
	$(RUN) -m pytest --numprocesses auto --hypothesis-profile=random -m hypothesis

check: lint types size pytest  ## what `make test` runs

golden: $(VENV)/.setup  ## rewrite stored kernels, messages and outputs in docs, and show what changed
	$(RUN) -m pytest tests/codegen --update-golden
	$(RUN) -m tests.errors_page
	$(RUN) -m tests.test_walkthrough
	git diff --stat tests/golden docs

bench: $(VENV)/.setup  ## all benchmarks; quiet the machine first
	$(RUN) -m benchmarks.neuron
	$(RUN) -m benchmarks.network
	$(RUN) -m benchmarks.libraries
	$(RUN) -m benchmarks.recurrent
	$(RUN) -m benchmarks.compile_time
	$(RUN) -m benchmarks.latency
	$(RUN) -m benchmarks.online
	$(RUN) -m benchmarks.whole_numbers
	$(RUN) -m benchmarks.parallel
	$(RUN) -m benchmarks.forms
	$(RUN) -m benchmarks.hard_reset
	$(RUN) -m benchmarks.sweeps
	$(RUN) -m benchmarks.devices
	$(RUN) -m benchmarks.asynchronous

bench-gpu:  ## everything that is measured on a GPU, with the Python that holds torch and Triton
	python3 -m benchmarks.gpu

compatibility: $(VENV)/.setup  ## check every idiom and write docs/compatibility.md
	$(RUN) -m tests.compatibility.report
	$(RUN) -m tests.compatibility.report --exports c --exports onnx --exports pt2 --exports nir

examples: $(VENV)/.setup  ## run every example
	$(RUN) examples/speech.py --out out/speech
	$(RUN) examples/digits.py --out out/digits
	$(RUN) examples/sequential_digits.py
	$(RUN) examples/vowels.py
	$(RUN) examples/online_speech.py
	$(RUN) examples/asynchronous.py
	$(RUN) examples/deploy_speech.py --out out/deploy
	$(RUN) examples/language.py
	$(RUN) examples/two_processes.py

clean:  ## remove what the tools wrote; the virtual environment stays
	rm -rf out build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than the files it was made from, so a change of pins installs again. torch goes
# first: with it pinned in place, nothing that comes later can pull another one in.
$(VENV)/.torch: constraints.txt
	@test -n "$(PYTHON)" || { echo "snncc needs Python 3.11 or newer with venv; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[examples]"
	@$(BYTECODE)
	@touch $@

$(VENV)/.setup: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[dev,examples,export,triton,bench]"
	@$(BYTECODE)
	@touch $@ $(VENV)/.demo
