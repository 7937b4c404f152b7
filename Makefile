# Two commands: `make demo` and `make test`. Each sets up .venv first (about three minutes, once).
# TORCH= (empty) skips the machine-learning step: ledger, network and Datanets still work.
TORCH ?= torch==2.13.0
# The first Python that fits and can make an environment; pyenv's shims exist without working.
PY ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	>/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv/bin/python
PIP := $(VENV) -m pip --disable-pip-version-check install -qq

.PHONY: demo test lint setup clean
.DEFAULT_GOAL := setup

demo: .venv/ready
	.venv/bin/olnode devnet --once
	@echo "next: .venv/bin/olnode devnet"

# Two workers: one starts the daemons, which mostly wait, the other takes the rest (tests/conftest.py).
test: lint
	$(VENV) -m pytest -q -n 2 --no-loadscope-reorder -m "not slow and not gpu and not load"

lint: .venv/ready
	$(VENV) -m ruff check .
	$(VENV) -m mypy

setup: .venv/ready

# No --clear: after a change of the lock only what differs is installed.
.venv/ready: requirements.lock pyproject.toml
	@test -n "$(PY)" || { echo "olnode needs Python 3.11 or 3.12 with venv: \
	install python3.11 and python3.11-venv, or say make PY=/path/to/python3.11" >&2; exit 3; }
	$(PY) -m venv .venv
	@if [ -n "$(TORCH)" ]; then echo "installing $(TORCH), about a minute"; $(PIP) "$(TORCH)"; fi
	@echo "installing the other packages, about a minute"
	@$(PIP) --no-deps -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf .venv build *.egg-info
