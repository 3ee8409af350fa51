# Everything a contributor types. `make help` lists it.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
LAB_HOST := $(if $(HOST),--host $(HOST))
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench check format lab-up lab-down clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## install what is missing (Debian packages, .venv, kernels and shims); REFRESH=1 looks for newer ones
ifeq ($(PYTHON),)
	@echo "apt   install python3 python3-venv" >&2
	@$(SUDO) apt-get -qq update >/dev/null
	@$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
		-o DPkg::Lock::Timeout=300 install python3 python3-venv >/dev/null
	@python3 -m lab.setup $(if $(REFRESH),--refresh)
else
	@$(PYTHON) -m lab.setup $(if $(REFRESH),--refresh)
endif

demo: setup ## a guided tour with a real guest; on a terminal it ends at the guest's shell; HOST=plain: see lab-up
	@$(BIN)/python -m lab.demo $(LAB_HOST)

test: setup ## all tests, those that boot real guests too (in the lab, where this machine cannot)
	@$(BIN)/python -m lab.fio
	@$(BIN)/python -m lab.suite

bench: setup ## xenpvd beside its peers, with a chart of it all, in half an hour; bench-NAME: one part (bench-rpc)
	@$(BIN)/python -m bench $(if $(ROUNDS),--rounds $(ROUNDS))

bench-%: setup
	@$(BIN)/python -m bench $* $(if $(ROUNDS),--rounds $(ROUNDS))

check: setup ## format, lint, types and unit tests, in under a minute
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy xenpvd lab bench
	$(BIN)/pytest -q -m "not lab"

format: ## put the code into its format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lab-up: setup ## start the lab host and keep it warm; HOST=plain: the one whose KVM has no Xen support
	@$(BIN)/python -m lab up $(LAB_HOST)

lab-down: ## stop the lab host; HOST=plain: the other one
	@$(or $(PYTHON),python3) -m lab down $(LAB_HOST)

clean: ## delete what tools have left in the checkout
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## and the venv, and all that the lab keeps in the cache folder
	@$(or $(PYTHON),python3) -m lab purge
	rm -rf .venv
