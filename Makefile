# Everything installs into .venv (the working copy, editable) and .venvs (the built wheel, for tests).
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check install --quiet
SOURCES := $(shell find core storage server client bench -type f ! -name '*.pyc') pyproject.toml README.md LICENSE
FAST := $(wildcard tests/unit tests/property tests/simulation)
SLOW := $(wildcard tests/conformance tests/integration tests/browser)
VERSIONS := 3.11 3.12 3.13
CORES := 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-slow test-chaos smoke check bench bench-quick bench-full \
	bench-peers micro simulate chaos shifts overload standby contract mutate locust format tools clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.run ## half a minute of the real thing: Postgres, a server, two workers, 20,000 jobs, a kill
	$(BIN)/tickwheel demo

test: tools test-fast test-slow test-chaos smoke ## run all tests, on the built wheel

check: $(VENV)/.dev ## format, lint, types, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# ONLY='C 10k*' measures these phases, now and anew, SAVE=name keeps a baseline; the report is
# docs/benchmarks.md, written once no phase of the ladder is missing.
BENCH = $(BIN)/python -m tickwheel.bench
SAVED = $(if $(SAVE),--benchmark-storage=file://bench/results/micro --benchmark-save='$(SAVE)')
PICKED = $(if $(ONLY),--only '$(ONLY)')

bench: $(VENV)/.dev ## measure this machine in 40 minutes, and write docs/benchmarks.md anew
	$(BENCH) ladder $(PICKED)

bench-quick: $(VENV)/.dev ## the same shapes, small, in 3 minutes
	$(BENCH) quick $(PICKED)

bench-full: $(VENV)/.dev ## with ten-minute phases and a soak, in hours; goes on where it stopped
	$(BENCH) full $(PICKED)

bench-peers: $(VENV)/.dev ## other job queues beside Tickwheel, in one run
	@$(BENCH) peers; status=$$?; $(BENCH) report; exit $$status

micro: $(VENV)/.dev ## micro-benchmarks of the parts, beside their baselines
	$(BIN)/pytest bench/micro --timeout 0 --benchmark-quiet $(SAVED)

simulate: $(VENV)/.dev ## SEEDS=50000 worlds of simulation, from SEED_START on
	SEEDS=$(or $(SEEDS),2000) SEED_START=$(or $(SEED_START),0) $(BIN)/pytest -q -n $(CORES) tests/simulation -k breaks

# KEEP=folder adds the figures of several runs up.
chaos: $(VENV)/.dev ## MINUTES=60 of real processes that are killed, stopped and cut off
	MINUTES=$(or $(MINUTES),3) SEED=$(or $(SEED),1) RATE=$(or $(RATE),60) CHAOS_KEEP='$(KEEP)' $(BIN)/pytest -q -s --timeout 0 tests/chaos/test_chaos.py

shifts: $(VENV)/.dev ## REPEATS=50 times each: schedulers killed, stopped, restarted one by one at RATE=5000 jobs/s
	REPEATS=$(or $(REPEATS),5) RATE=$(or $(RATE),1000) $(BIN)/pytest -q -s --timeout 0 tests/chaos/test_shifts.py

overload: $(VENV)/.dev ## SECONDS=60 of ten times too much, and JOBS=1000000 that are overdue
	SECONDS=$(or $(SECONDS),20) JOBS=$(or $(JOBS),200000) $(BIN)/pytest -q -s --timeout 0 tests/chaos/test_overload.py

standby: $(VENV)/.dev ## a standby that lags and dies, and ROUNDS=20 of one promoted without the last commits
	ROUNDS=$(or $(ROUNDS),3) $(BIN)/pytest -q -s --timeout 0 tests/chaos/test_standby.py

contract: $(VENV)/.dev ## SECONDS=600 of calls that /openapi.json allows or forbids, against a real server
	SECONDS=$(or $(SECONDS),120) SEED=$(or $(SEED),1) $(BIN)/pytest -q -s --timeout 0 tests/integration/test_http_contract.py

mutate: $(VENV)/.dev ## take each guard away and see which test tells
	PYTHONPATH=tests $(BIN)/python -m mutation $(ONLY)

locust: $(VENV)/.dev ## locust's web page against HOST=http://… with KEY=tw_…
	@test -n "$(HOST)" || { echo "usage: make locust HOST=http://… [KEY=tw_…]"; exit 1; }
	@TICKWHEEL_API_KEY='$(KEY)' $(BENCH) locust --host '$(HOST)'

format: $(VENV)/.dev ## rewrite the sources in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## delete what was built and installed here
	rm -rf $(VENV) .venvs build dist *.egg-info

$(BIN)/python:
	@python=$$(.ci/find-python) || { echo "Tickwheel needs Python 3.11 or newer, with venv"; exit 1; }; \
	"$$python" -m venv $(VENV)

# A stamp is as new as the last install that went well.
$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(BIN)/python $(PIP) -e '.[server,embedded]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python $(PIP) -e '.[dev]'
	@touch $(VENV)/.run $@

dist/.built: $(SOURCES) | $(VENV)/.dev
	rm -rf dist build
	$(BIN)/python -m build --outdir dist . >/dev/null
	@touch $@

.venvs/main/.deps: pyproject.toml | $(VENV)/.dev dist/.built
	$(BIN)/python -c 'import venv; venv.create(".venvs/main", with_pip=True, clear=True)'
	.venvs/main/bin/python $(PIP) "$$(echo dist/*.whl)[dev]"
	@touch $@

# Away from the sources, the wheel alone can answer for `tickwheel`.
.venvs/main/.stamp: .venvs/main/.deps dist/.built
	.venvs/main/bin/python $(PIP) --no-deps --force-reinstall dist/*.whl
	cd / && $(CURDIR)/.venvs/main/bin/python -c \
		'import tickwheel.core as c; assert "site-packages" in c.__file__, c.__file__'
	@touch $@

test-fast: .venvs/main/.stamp ## unit, property and simulation tests
	.venvs/main/bin/pytest -q -n $(CORES) $(FAST)

test-slow: tools .venvs/main/.stamp ## tests with real databases and processes
	.venvs/main/bin/pytest -q -n $(CORES) --dist loadfile $(SLOW)

test-chaos: .venvs/main/.stamp ## 3 minutes of real processes that are killed, stopped and cut off
	MINUTES=3 .venvs/main/bin/pytest -q -s --timeout 600 tests/chaos/test_chaos.py

smoke: $(VERSIONS:%=smoke-%) ## the essentials, on every other supported Python present

smoke-%: dist/.built
	@python=$$(.ci/find-python $*) || { echo "Python $* is not here: its smoke tests are left out"; exit 0; }; \
	if $(BIN)/python -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$*')"; then exit 0; fi; \
	echo "Python $*: smoke tests"; \
	{ [ -x .venvs/$*/bin/python ] || "$$python" -m venv .venvs/$*; } && \
	.venvs/$*/bin/python $(PIP) pytest pytest-timeout "$$(echo dist/*.whl)[server,embedded]" && \
	.venvs/$*/bin/python $(PIP) --no-deps --force-reinstall dist/*.whl && \
	.venvs/$*/bin/pytest -q tests/smoke

tools:
	@for tool in node:nodejs curl:curl openssl:openssl; do \
		command -v $${tool%:*} >/dev/null && continue; \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && apt-get install -y -qq --no-install-recommends $${tool#*:} || exit 1; \
		else echo "the tests need $${tool%:*}: install it, then run this again"; exit 1; fi; \
	done
