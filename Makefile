# `make` or `make run` serves the examples; `make help` lists all targets.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; \
	done)
VENV := .venv
BIN := $(VENV)/bin
BUILDER := hatchling>=1.25,<2
# One process more than processors, since that with the tests of containers mostly waits for the engine; at most 4.
PARALLEL := -n $(shell n=$$(nproc); echo $$((n < 4 ? n + 1 : 4)))
PURE := archive cluster_settings config_client config_files config_load config_modules config_secrets cron embedding \
	endpoint_fields errors events frames golden_vectors hints ids messages module_files modules_schema notices \
	operato packages results scan schema schema_examples script secret signatures source terminal timing tool_policy typed upload \
	views yaml_mistakes
GUESTS := protocol/authors/calling.py,protocol/guest.py,protocol/many.py,protocol/parts.py,protocol/relay.py,protocol/sharing.py,protocol/values.py
UPGRADE ?= --upgrade
COMPILE := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url

.PHONY: help run test check lint fix coverage floor bench bench-compare soak axe screenshots docs dist lock proto clean
.DEFAULT_GOAL := run

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.run ## serve modules.yaml on port 8000
	$(BIN)/python main.py

test: $(VENV)/.dev ## all tests
	$(BIN)/python -m pytest $(PARALLEL)

check: $(VENV)/.dev lint ## every gate
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(VENV)/.dev ## style, types, walls between rooms, and the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy packaging/make_dist.py packaging/commit_hook.py
	MYPYPATH=packaging/client $(BIN)/mypy --python-version 3.10 -p operato
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict -q -d build/site

fix: $(VENV)/.dev ## format, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(VENV)/.dev ## all tests, and which lines they run, also as pages in build/coverage/html
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report
	$(BIN)/coverage html -q

floor: $(VENV)/.dev ## fail where unit tests run less than 97 percent of protocol and config
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q $(PARALLEL) $(PURE:%=tests/unit/test_%.py)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --include="protocol/*,config/*" --omit="$(GUESTS)" --fail-under=97

MINUTES ?= 60
soak: $(VENV)/.dev ## kill, stop and cut off runners and servers of a cluster for MINUTES (60)
	$(BIN)/python -m tests.cluster.soak $(MINUTES) $(SEED)

bench: $(VENV)/.dev ## run all benchmarks; results go to tests/benchmarks/results/COMMIT.json
	$(BIN)/python -m tests.benchmarks

bench-compare: $(VENV)/.dev ## measure two commits in turn: make bench-compare BASE=... [HEAD=...]
	$(BIN)/python tests/benchmarks/bench_against.py $(BASE) $(HEAD)

axe: build/axe/node_modules ## the accessibility checker of the browser tests, by npm

build/axe/node_modules: tests/browser/package.json tests/browser/package-lock.json
	@mkdir -p build/axe
	@cp $^ build/axe/
	npm ci --prefix build/axe --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

screenshots: $(VENV)/.dev ## pictures of all views of the dashboard, in build/screenshots (needs chromium)
	$(BIN)/python -m tests.browser.screenshots

docs: $(VENV)/.dev ## serve the documentation on 127.0.0.1, and reload it when it changes
	$(BIN)/mkdocs serve

.PHONY: docs-stamp
docs-stamp: $(VENV)/.dev ## print for each Korean page the line that names its English source
	$(BIN)/python -m tests.documents

dist: $(VENV)/.dev ## wheel, sdist, one-file executables and SHA256SUMS, in dist/
	$(BIN)/python packaging/make_dist.py

proto: $(VENV)/.dev ## make the code and the descriptors in protocol/rpc from executor.proto
	rm -rf protocol/rpc
	mkdir protocol/rpc
	$(BIN)/python -m grpc_tools.protoc -I protocol \
		--plugin=protoc-gen-python_betterproto=$(BIN)/protoc-gen-python_betterproto \
		--python_betterproto_out=protocol/rpc \
		--include_imports --descriptor_set_out=protocol/rpc/executor.binpb executor.proto

lock: $(VENV)/.dev ## upgrade the versions of all dependencies; UPGRADE= adds and removes only what changed
	$(COMPILE) $(UPGRADE) pyproject.toml --extra cluster -o requirements.txt
	$(COMPILE) $(UPGRADE) -c requirements.txt pyproject.toml --group dev -o requirements-dev.txt
	$(COMPILE) -c requirements.txt -c requirements-dev.txt pyproject.toml --extra cluster --extra conda \
		-o packaging/image.lock
	echo '$(BUILDER)' | $(COMPILE) $(UPGRADE) - -o packaging/build.lock

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or later is needed; set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The program, run from this folder of source: `.venv/bin/operato-runner`.
$(VENV)/bin/operato-runner: | $(VENV)/bin/python
	@printf '#!/bin/sh\nexec "%s/python" "%s/main.py" "$$@"\n' "$(abspath $(BIN))" "$(CURDIR)" > $@
	@chmod +x $@

$(VENV)/.run: requirements.txt | $(VENV)/bin/python $(VENV)/bin/operato-runner
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt | $(VENV)/bin/python $(VENV)/bin/operato-runner
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@ $(VENV)/.run

clean: ## remove the virtual environment, builds and caches
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# Servers that tests start would compile everything again, each of them.
unexport PYTHONDONTWRITEBYTECODE

# The theme prints a notice about its successor at each build.
export NO_MKDOCS_2_WARNING := 1
