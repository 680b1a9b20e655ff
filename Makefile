# Two commands do everything: `make run` and `make test`. They need Python 3.11 or newer with venv, and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 8080
TESTS ?= tests
WEBSOCKET_TESTS := tests.test_websocket tests.test_websocket_closing tests.test_websocket_handshake \
	tests.test_signaling_protocol tests.test_backpressure tests.test_keepalive tests.test_door tests.test_site \
	tests.test_drain tests.e2e.test_contract_signaling tests.e2e.test_contract_opening tests.e2e.test_contract_workers
COMPILED_TESTS := tests.test_checked_relay tests.test_descriptions tests.test_descriptions_reference \
	tests.test_fast_assumptions tests.test_fastclose tests.test_fasthandshake tests.test_fastpath \
	tests.test_fasttransport tests.test_frames tests.test_gathering tests.test_signaling_protocol
export PORT

.DEFAULT_GOAL := help
.PHONY: help cluster run bench bench-cluster soak test lint types unit unit-slow-path unit-uncompiled clean

help: ## What there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python setup.cfg setup.py pyproject.toml kollator/_speedups.c
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

run/worker.key:
	@mkdir -p run
	@umask 077 && $(PYTHON) -c 'import secrets; print(secrets.token_hex(32))' > $@

cluster: $(VENV)/.installed ## Starts three fronts on ports 8080 to 8082 that know each other, with a worker each
	etc/cluster.sh

run: $(VENV)/.installed run/worker.key ## Starts a front with a demo worker; prints the address to open
	@exec $(BIN)/twistd -n --pidfile= kollator-front --database run/signaling.db \
		--worker-key-file run/worker.key --demo-worker

test: lint types unit unit-slow-path unit-uncompiled ## Lint, types, the whole test suite

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-test
	$(BIN)/mypy kollator tests

unit: $(VENV)/.installed-test ## The trial suite alone; TESTS=tests.test_ring for a part
	$(BIN)/python -W default -m twisted.trial $(TESTS)

unit-slow-path: $(VENV)/.installed-test ## What is about WebSockets once more, with FAST_PATH=false
	FAST_PATH=false $(BIN)/python -W default -m twisted.trial $(WEBSOCKET_TESTS)

unit-uncompiled: $(VENV)/.installed-test ## What is compiled once more, in Python
	$(BIN)/python -W default -m tests.uncompiled $(COMPILED_TESTS)

bench: $(VENV)/.installed-test ## A front beside its peers, some 20 minutes; BENCH=--quick for some minutes
	$(BIN)/python -m tests.bench.suite --json .bench/figures.json --plot .bench/figures.svg $(BENCH)

bench-cluster: $(VENV)/.installed-test ## The figures of a cluster, of the pool, of health, and of attacks
	$(BIN)/python -m tests.bench.cluster
	$(BIN)/python -m tests.bench.pool
	$(BIN)/python -m tests.bench.health
	$(BIN)/python -m tests.bench.attacks

soak: $(VENV)/.installed-test ## 10,000 seeds of the cluster simulator and five minutes for each target of the fuzzer (hours)
	$(BIN)/python -m tests.fuzz --minutes 5 --seed 1000
	$(BIN)/python -m tests.sim --seeds 0..9999

clean: ## Removes what was built and installed here
	rm -rf $(VENV) .bench build *.egg-info run _trial_temp* .hypothesis .mypy_cache .ruff_cache kollator/state/lib kollator/*.so
