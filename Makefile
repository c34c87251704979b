# Stowage. `make demo` and `make test` work on a fresh checkout: nothing but Python 3.11 and make is needed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

CONTAINER_ENGINE ?= $(shell command -v podman || command -v docker)
IMAGE_PREFIX ?= stowage
IMAGE_TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

CLUSTER := $(or $(STOWAGE_TEST_KUBECONFIG),$(KUBECONFIG))

.PHONY: help demo up images test test-compose test-kubernetes stand-ins chaos fuzz check format lint types imports lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.local ## Set up, start everything, import the environmental observatory and run its workflows (ONCE=1: then stop)
	@$(BIN)/python -m infra.local demo $(if $(ONCE),--once)

up: $(VENV)/.local ## Start the stack and stay in the foreground, with its logs
	@$(BIN)/python -m infra.local up

images: ## Build the images of registry, builder and runner with podman or docker (IMAGE_PREFIX=stowage IMAGE_TAG=…)
	@test -n "$(CONTAINER_ENGINE)" || { echo "neither podman nor docker is installed; one of them builds the images"; exit 1; }
	@for target in registry builder runner; do \
		$(CONTAINER_ENGINE) build --file infra/images/Dockerfile --target $$target --tag $(IMAGE_PREFIX)/$$target:$(IMAGE_TAG) \
			$(if $(findstring podman,$(CONTAINER_ENGINE)),--pull=missing --format docker) \
			--build-arg VERSION=$(IMAGE_TAG) --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null)" . || exit 1; done

test: $(VENV)/.dev ## Run all the tests, on a real PostgreSQL and a real S3 server
	@$(BIN)/pytest --numprocesses 3 --dist worksteal $(TESTED_BEFORE:%=--ignore %)

test-compose: $(VENV)/.dev ## Build the images, bring infra/compose.yaml up, run the observatory in it (docker or podman)
	@$(BIN)/python -m tests.compose

test-kubernetes: $(VENV)/.dev ## Install on the cluster that KUBECONFIG names, use and disturb it there; the namespaces stowage… must be free
	@if [ -n "$$STOWAGE_TEST_LOAD_IMAGES" ]; then $(MAKE) images && $(BIN)/python -m tests.kubernetes.images; fi
	@STOWAGE_TEST_RUNNER_IMAGE=$${STOWAGE_TEST_RUNNER_IMAGE:-stowage/runner:$(IMAGE_TAG)} $(BIN)/pytest tests/kubernetes -n 0

stand-ins: ## Build images of PostgreSQL and an S3 server from packages, where none can be pulled
	@for name in postgres s3; do \
		$(CONTAINER_ENGINE) build --file tests/containers/$$name/Containerfile --tag stowage-test/$$name:1 \
			$(if $(findstring podman,$(CONTAINER_ENGINE)),--pull=missing --format docker) . || exit 1; done

chaos: $(VENV)/.dev ## Kill, pause and cut off runners and servers under load (MINUTES=5 SEED=…), and check that nothing is lost
	@$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/.dev ## Feed damaged archives, manifests and binaries to what reads them (MINUTES=5 SEED=…)
	@$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

# The cluster's tests come first, so that the last summary is that of all others.
check: TESTED_BEFORE := $(if $(CLUSTER),tests/kubernetes)
check: lint types imports $(if $(CLUSTER),test-kubernetes) test ## What CI runs: format, lint, types, import contracts, tests

format: $(VENV)/.dev ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lint: $(VENV)/.dev ## Check format and lint
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/hadolint infra/images/Dockerfile tests/containers/*/Containerfile

types: $(VENV)/.dev ## Check types
	@$(BIN)/mypy

imports: $(VENV)/.dev ## Check who imports whom
	@$(BIN)/lint-imports

lock: $(VENV)/.dev ## Renew the lock files from requirements/*.in
	@for name in runtime registry builder runner local servers dev; do \
		$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
			--no-header --no-annotate $(LOCK_OPTIONS) requirements/$$name.in --output-file requirements/$$name.txt \
			$$([ $$name = runtime ] || echo --constraint requirements/runtime.txt) || exit 1; done

clean: ## Remove the stack's state and the virtual environment
	@$(PYTHON) -c "import fcntl, pathlib, os, sys; \
	home = pathlib.Path(os.environ.get('STOWAGE_HOME') or '.stowage'); lock = home / 'lock'; \
	lock.exists() and fcntl.flock(lock.open('a'), fcntl.LOCK_EX | fcntl.LOCK_NB)" 2>/dev/null \
		|| { echo "a stack is running; stop it first"; exit 1; }
	rm -rf "$${STOWAGE_HOME:-.stowage}" $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.local: requirements/local.txt | $(VENV)/bin/python
	@echo "Installing PostgreSQL, the S3 server, Node.js and the Python packages into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/local.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt | $(VENV)/bin/python
	@echo "Installing what the checks and tests need into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.txt
	@touch $@ $(VENV)/.local
