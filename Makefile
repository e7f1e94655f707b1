SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What protoc writes, and from what.
PROTOC = $(BIN)/python -m grpc_tools.protoc
ARGS ?=
# Tests wait more than they work: one more at a time than there are cores.
WORKERS := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))

.PHONY: help
help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# The first interpreter that runs, is new enough and can make a virtual environment.
$(BIN)/python:
	@for candidate in $${PYTHON:-} python3 python3.13 python3.12 python3.11; do \
	  if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Creating $(VENV) with $$($$candidate --version)"; exec $$candidate -m venv $(VENV); \
	  fi; \
	done; \
	echo "No Python 3.11 or newer with venv was found: install one (Debian: python3 and python3-venv), or name it: make PYTHON=/path/to/python" >&2; exit 1

# Installs once, and again when the dependencies change.
$(READY): pyproject.toml | $(BIN)/python
	@echo "Installing the project and its tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

.PHONY: setup
setup: $(READY) ## Create .venv with everything in it.

.PHONY: proto
proto: $(READY) ## Regenerate the message classes from their .proto files.
	@$(PROTOC) -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/controlplane/v1/*.proto
	@$(PROTOC) -I . --python_out=. --pyi_out=. bench/etcd/rpc.proto

.PHONY: check-proto
check-proto: $(READY) ## Is the generated code what the .proto files say?
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(PROTOC) -I proto --python_out="$$fresh" --pyi_out="$$fresh" --grpc_python_out="$$fresh" proto/controlplane/v1/*.proto; \
	$(PROTOC) -I . --python_out="$$fresh" --pyi_out="$$fresh" bench/etcd/rpc.proto; \
	for file in $$(cd "$$fresh" && find . -type f); do \
	  cmp --silent "$$fresh/$$file" "$$file" || { echo "$$file is not what its .proto says: run make proto" >&2; exit 1; }; \
	done; \
	for file in controlplane/v1/*_pb2*; do \
	  [ -e "$$fresh/$$file" ] || { echo "$$file has no .proto: delete it" >&2; exit 1; }; \
	done

.PHONY: check
check: $(READY) check-proto ## Style, types, layers, generated code.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: test
test: check ## Everything a change has to pass.
	@$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal $(ARGS)

.PHONY: demo
demo: $(READY) ## Three regions, agents, failures, residency reports; what happened stands in build/demo.json.
	@$(BIN)/controlplane demo $(ARGS)

.PHONY: demo-region
demo-region: $(READY) ## The quick demo, of one region.
	@$(BIN)/controlplane demo --regions 1 $(ARGS)

.PHONY: bench
bench: $(READY) ## Side by side with etcd where it is installed; build/bench.json. ARGS=--quick for a short run.
	@$(BIN)/python -m bench $(ARGS)

.PHONY: bench-fleet
bench-fleet: $(READY) ## Of this only what is about several regions and the ledger; build/bench-fleet.json.
	@$(BIN)/python -m bench --only fleet --only ledger --only bundle --out build/bench-fleet.json $(ARGS)

.PHONY: chaos
chaos: $(READY) ## Everything that breaks it on purpose; takes long. ARGS="simulate ..." runs one thing.
	@$(BIN)/python -m chaos $(or $(ARGS),tier commit)

.PHONY: chaos-nightly
chaos-nightly: $(READY) ## The same at length, from new seeds: two days on two cores.
	@$(BIN)/python -m chaos tier nightly --seed $$(date +%Y%m%d)000000 --jobs $$(nproc)

.PHONY: clean
clean: ## Remove what the other targets made, .venv included.
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache $(VENV)
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
