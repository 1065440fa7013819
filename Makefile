# What people and CI run. Everything happens in .venv; nothing is installed outside of it but Debian packages that are named below.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Debian packages that the tests use: a virtual environment needs this one where the system's own Python is used.
DEBIAN := $(shell $(PYTHON) -c 'import ensurepip' 2>/dev/null || echo python3-venv)

help:  ## This list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/agentkit: setup.cfg pyproject.toml | debian
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "agentkit needs Python 3.11 or newer; set PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	$(BIN)/python -m compileall -q agentkit startup agents  # the first start is as quick as the later ones
	touch $@

$(VENV)/.test: setup.cfg pyproject.toml | $(BIN)/agentkit
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

$(VENV)/.bench: setup.cfg | $(BIN)/agentkit
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@

.PHONY: help up down debian programs lint quick test cover soak bench clean

up: $(BIN)/agentkit  ## Install into .venv and bring up the example fleet
	@$(BIN)/agentkit up configs/startup_config.yaml

down: $(BIN)/agentkit  ## Stop the fleet and its nodes
	@$(BIN)/agentkit down

debian:  # what is needed of the system; as root it is installed, else it is said what is missing
	@missing=(); for package in $(DEBIAN); do dpkg -s "$$package" >/dev/null 2>&1 || missing+=("$$package"); done; \
	if (( $${#missing[@]} )); then \
	  if (( EUID == 0 )); then apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "$${missing[@]}" >/dev/null; \
	  else echo "missing Debian packages: $${missing[*]}; run: sudo apt-get install $${missing[*]}" >&2; fi; fi

lint: $(VENV)/.test  ## Style, types, layer contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg

quick: $(VENV)/.test  ## The pure part, in seconds
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not process and not slow" tests

# two machines of namespaces, an sshd in each, and a wrong clock: tests/hosts
test cover soak: DEBIAN += iproute2 openssh-server faketime
# a Redis for tests: its program is in redis-tools, redis-server is a link to it and a service, which nobody asked for
test cover soak: DEBIAN += redis-tools

programs: $(VENV)/.test  # servers of Debian that tests use: unpacked into a cache folder, not installed
	$(BIN)/python -m tests.consul.debian

test: lint programs  ## Everything that CI runs: style, types, contracts, all tests
	$(BIN)/python -m pytest -n auto --dist loadfile tests || $(BIN)/python -m tests.again $$?

cover: $(VENV)/.test programs  ## All tests, and which lines they reach: half as long again
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n auto --dist loadfile tests
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

soak: $(VENV)/.test  ## The long forms, seeded
	$(BIN)/python -m pytest -q -s -m soak --times 20 --timeout 7200 tests

bench: DEBIAN += nats-server  # a peer; one that is not there is left out of the tables
bench: $(VENV)/.bench programs  ## All benchmarks beside their peers (about ten minutes)
	$(BIN)/python benchmarks/bench_startup.py
	$(BIN)/python benchmarks/bench_rpc.py
	$(BIN)/python benchmarks/bench_overload.py
	$(BIN)/python benchmarks/bench_events.py
	$(BIN)/python benchmarks/bench_stream.py
	$(BIN)/python benchmarks/bench_discovery.py
	$(BIN)/python benchmarks/bench_supervise.py
	$(BIN)/python benchmarks/bench_hibernate.py

clean:  ## Remove what make made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
