# `make run` serves the examples, `make test` runs the tests, `make check` runs every gate.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo "$$p" && break; \
	done)
VENV := .venv
BIN := $(VENV)/bin
BUILDER := hatchling>=1.25,<2
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4

.PHONY: run test check lint fix bench dist lock proto clean
.DEFAULT_GOAL := run

run: $(VENV)/.run ## serve modules.yaml on port 8000
	$(BIN)/python main.py

test: $(VENV)/.dev ## all tests
	$(PYTEST)

check: $(VENV)/.dev lint ## every gate
	$(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy packaging/make_dist.py packaging/commit_hook.py
	$(BIN)/lint-imports

fix: $(VENV)/.dev ## format, and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## print the ratios of the README
	$(BIN)/python -m tests.benchmarks

dist: $(VENV)/.dev ## wheel, sdist, one-file executables and SHA256SUMS, in dist/
	$(BIN)/python packaging/make_dist.py

proto: $(VENV)/.dev ## make the code and the descriptors in protocol/rpc from executor.proto
	rm -rf protocol/rpc
	mkdir protocol/rpc
	$(BIN)/python -m grpc_tools.protoc -I protocol \
		--plugin=protoc-gen-python_betterproto=$(BIN)/protoc-gen-python_betterproto \
		--python_betterproto_out=protocol/rpc \
		--include_imports --descriptor_set_out=protocol/rpc/executor.binpb executor.proto

lock: $(VENV)/.dev ## fix the versions of everything again
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --upgrade pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --upgrade pyproject.toml --group dev -o requirements-dev.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url -c requirements.txt pyproject.toml --extra conda -o packaging/image.lock
	echo '$(BUILDER)' | $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --no-emit-index-url --upgrade - -o packaging/build.lock

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11, 3.12 or 3.13 is needed; set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
