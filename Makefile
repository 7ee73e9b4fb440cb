# make up     a three-node cluster on this machine, until Ctrl-C
# make test   every test, in WORKERS processes (3)
# make lint   what a reviewer's machine checks
# make chaos  faults drawn by SEED befall a cluster under load for SECONDS; chaos-long: for twenty minutes
# make bench  the benchmarks, with their tables, JSON and plots in benchmarks/results/; more in benchmarks/README.md

PYTHON ?= python3
WORKERS ?= 3
SEED ?= 1
SECONDS ?= 180
BIN := .venv/bin
INSTALLED := .venv/.installed
INSTALLED_BENCH := .venv/.installed-bench

.PHONY: up test lint chaos chaos-long bench bench-long bench-peers bench-flame bench-last install clean

up: install
	@$(BIN)/holdfast up

test: install
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

chaos: install
	@$(BIN)/python -m tests.chaos --seed $(SEED) --seconds $(SECONDS)

chaos-long:
	@$(MAKE) chaos SECONDS=1200

# Shortened where the whole takes minutes that tell nothing more: all together they take less than twenty.
bench: install $(INSTALLED_BENCH)
	@$(BIN)/python -m benchmarks.bench_transfer
	@$(BIN)/python -m benchmarks.bench_scale --best-of 1
	@$(BIN)/python -m benchmarks.bench_search
	@$(BIN)/python -m benchmarks.bench_workers --best-of 1
	@$(BIN)/python -m benchmarks.bench_calls --seconds 1 --rounds 2
	@$(BIN)/python -m benchmarks.bench_ring
	@$(BIN)/python -m benchmarks.bench_repair --quick
	@$(BIN)/python -m benchmarks.bench_scrub
	@$(BIN)/python -m benchmarks.bench_gc --rows 150000
	@$(BIN)/python -m benchmarks.bench_failover

bench-long: install $(INSTALLED_BENCH)
	@$(BIN)/python -m benchmarks.bench_long

bench-peers: install $(INSTALLED_BENCH)
	@$(BIN)/python -m benchmarks.bench_peers

bench-flame: install $(INSTALLED_BENCH)
	@$(BIN)/python -m benchmarks.flame

bench-last: bench bench-long bench-peers bench-flame
	@$(BIN)/python -m benchmarks.last

install: $(INSTALLED)

# Debian's python3 may lack ensurepip: the system's pip then fills the environment from outside.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Holdfast needs Python 3.11 or newer; set PYTHON=")'
	@echo "Installing Holdfast into .venv (a minute or so, the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv >/dev/null 2>&1 || $(PYTHON) -m venv --clear --without-pip .venv
	@if test -x $(BIN)/pip; then pip="$(BIN)/python -m pip"; else pip="$(PYTHON) -m pip --python $(BIN)/python"; fi; \
	  $$pip install --quiet --disable-pip-version-check -e '.[embedded,test]'
	@touch $@

$(INSTALLED_BENCH): $(INSTALLED)
	@if test -x $(BIN)/pip; then pip="$(BIN)/python -m pip"; else pip="$(PYTHON) -m pip --python $(BIN)/python"; fi; \
	  $$pip install --quiet --disable-pip-version-check -e '.[embedded,bench]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
