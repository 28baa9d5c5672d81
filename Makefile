# Every target makes .venv by itself; Python 3.11 or later and make are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo federation test check install clean kills chaos mutants bench bench-step bench-idle audit slow

demo: $(STAMP)
	$(BIN)/silotune simulate demo

test: check

check: $(STAMP)
	scripts/check

# Long runs, not part of `make test`.

# 200 SIGKILLs of a process that releases; the ledger must come out right after each.
kills: $(STAMP)
	SILOTUNE_KILLS=200 $(BIN)/python -m pytest -q --timeout=1800 tests/privacy/test_kills.py

# Broken versions of the privacy code: each must be caught by a test.
mutants: $(STAMP)
	$(BIN)/python scripts/mutants

# A private step against the same step without privacy, and against Opacus' hooks.
bench-step: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m simulations.benchmarks.step

# A round with next to nothing to train, against stock Flower; memory beside a merchant's daemon.
bench-idle: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m simulations.benchmarks.rounds_idle

# Against the stock recipe, plain training, dp-lora and NVFlare, and how it scales; rewrites
# docs/performance.md. Hours; `$(BIN)/python -m simulations.benchmarks --help` for one row alone.
bench: $(STAMP)
	$(BIN)/python -m simulations.benchmarks

# Canary users and attacks against the claimed guarantee.
audit: $(STAMP)
	$(BIN)/silotune privacy audit

# Three merchants and an aggregator as real processes with TLS, compared with the simulation.
federation: $(STAMP)
	$(BIN)/python scripts/federation

# 100 SIGKILLs at random over all processes of a real federation during one run of 20 rounds;
# `$(BIN)/python -m simulations.chaos --help` for another number, seed or size.
chaos: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m simulations.chaos

# Tests that are too slow for every run.
slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow --timeout=1800

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "silotune needs Python 3.11 or later; name one: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
