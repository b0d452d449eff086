# One command list for people, pre-commit and CI. `make help` prints it.
SHELL := /bin/bash
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
VENV := .venv
CLIENTS := $(patsubst tests/clients/%.txt,$(VENV)/clients/%.installed,$(wildcard tests/clients/*.txt))
BIN := $(VENV)/bin
NPM := $(shell command -v npm)
PORT ?= 3000
MODEL ?= emoji64
export BENTOML_DO_NOT_TRACK := true
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Empty is off. Where it is set, as containers often have it, every process that make starts would compile all modules anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test fuzz lint format serve search paper screenshots load peers soak gpu lock image up deploy-check clean

help: ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.runtime ## search, publish, serve and generate on a bundled model; MODEL=glyphs-ldm, glyphs-ddpm or glyphs-dit (emoji64: some 5 minutes after the installation)
	$(BIN)/python -m examples.demo --model $(MODEL)

serve: $(VENV)/.runtime ## serve a bundled model (MODEL=…), or several (MODELS=emoji64,glyphs-ldm or all), on 127.0.0.1:$(PORT); Ctrl-C ends it
	$(BIN)/python -m examples.serve --port $(PORT) --model $(MODEL) $(if $(MODELS),--models $(MODELS))

search: $(VENV)/.runtime ## a longer search than the demo's, into .flexi/runs/MODEL, published to .flexi/registry
	$(BIN)/python -m examples.search --model $(MODEL)

paper: $(VENV)/.runtime ## the paper's table on every bundled model, into .flexi/paper and docs/results.md (hours; resumes; OPTIONS=--quick: minutes, and all into .flexi/paper)
	$(BIN)/python -m benchmarks.paper run $(OPTIONS)

test: $(VENV)/.dev node_modules/.installed $(CLIENTS) ## the whole test suite (14 to 31 minutes on 2 cores); JOBS=1 one file after the other
	@tests/fetch-prometheus.sh $(BIN)
	@tests/fetch-chromium.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder

fuzz: $(VENV)/.dev ## schemathesis against a real service: every answer is declared, no 5xx; EXAMPLES=1000 a route
	FUZZ="--workers 1 --max-examples $(or $(EXAMPLES),1000)" FUZZ_LEAST=$(if $(EXAMPLES),200,10000) OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -s --timeout 7200 tests/e2e/test_fuzz.py

lint: $(VENV)/.dev node_modules/.installed deploy-check ## formatting, style, types (of the pages, too), import layers, Dockerfile, deploy/
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(if $(NPM),npm run --silent lint,@echo "No npm: the pages' scripts were not checked"$(if $(CI),; false))

deploy-check: $(VENV)/.dev ## render and validate deploy/: manifests, compose file, rules; no cluster or engine needed
	@tests/fetch-prometheus.sh $(BIN)
	$(BIN)/python -m deploy.check

format: $(VENV)/.dev node_modules/.installed ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(if $(NPM),npm run --silent format)

screenshots: $(VENV)/.dev ## the pages as they are, into docs/images, of the tiers that `make demo` published; REGISTRY=…
	PYTHONPATH=.:tests/support $(BIN)/python tests/e2e/screenshots.py --registry $(or $(REGISTRY),.flexi/registry)

load: $(VENV)/.dev ## a load test held to its limits; PROFILE=steady, burst, mixed, sizes, loras, arms or abandonment
	$(BIN)/python -m loadtests.run --profile $(PROFILE)
PROFILE ?= mixed

peers: $(VENV)/.dev ## our service beside a compiled pipeline and BentoML's own batching, on a simulated card (40 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m loadtests.peers --simulated

soak: $(VENV)/.dev ## 20 minutes of everything at once, S3 going away included
	$(BIN)/python -m loadtests.soak --minutes 20

gpu: $(VENV)/.dev ## everything that a GPU should be measured with, once, into OUT (13 minutes; DEVICE=cpu MODEL=tiny DTYPE=float32 PATIENCE=5 tries it)
	benchmarks/gpu.sh

lock: $(VENV)/.dev ## resolve pyproject.toml anew into the two lock files
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --upgrade $(LOCK_OPTIONS) --output-file requirements.lock pyproject.toml
	$(BIN)/pip-compile --quiet --upgrade $(LOCK_OPTIONS) --extra dev --extra load --constraint requirements.lock \
		--output-file requirements-dev.lock pyproject.toml
	sed -i -E 's/^(torch==[0-9.]+)\+cpu/\1/' requirements.lock requirements-dev.lock
LOCK_OPTIONS := --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-annotate --no-header

image: ## build the container image (needs a Docker engine); CUDA=cu130 for GPUs
	docker build --build-arg COMMIT=$$(git rev-parse HEAD) --build-arg CUDA=$(CUDA) -t flexiffusion-serve:$(IMAGE_TAG) .
CUDA ?= cpu
IMAGE_TAG = 0.1.0$(if $(filter-out cpu,$(CUDA)),-$(CUDA))

up: deploy/.env ## service, S3, Prometheus and Grafana in containers on this machine (needs a Docker engine): docs/deploy.md
	COMMIT=$$(git rev-parse HEAD) docker compose -f deploy/compose.yaml up --build --wait

deploy/.env:
	@sed "s/^AWS_SECRET_ACCESS_KEY=$$/&$$($(PYTHON) -c 'import secrets; print(secrets.token_hex(20))')/" deploy/.env.example >$@ && chmod 600 $@

clean: ## remove what the commands made, but not the registry
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/pip:
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer with its venv module is needed (Debian: apt install python3-venv); or: make PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Python compiles the modules that it imports, once; pip would compile all, which is nearly half of an installation.
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -r

$(VENV)/.runtime: $(BIN)/pip requirements.lock
	@echo "Installing the runtime into $(VENV) (torch is large: this takes minutes the first time)"
	$(INSTALL) requirements.lock
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	$(INSTALL) requirements-dev.lock
	@touch $@

# For those who change the pages: types, style, and what the tests look at them with. Who serves them needs no node.
node_modules/.installed: package-lock.json
	@$(if $(NPM),npm ci --silent,mkdir -p node_modules) && touch $@ || \
		echo "npm could not install what package-lock.json names: what wants it says so (make tries again)"

# Clients that tests run as their users do. Each has a folder of its own: they want different versions of the same packages.
$(VENV)/clients/%.installed: tests/clients/%.txt $(VENV)/.dev
	@echo "Installing $* into $(VENV)/clients/$*, for the tests that run it"
	@rm -rf $(VENV)/clients/$*
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-compile --target $(VENV)/clients/$* -r $< && touch $@ || \
		echo "$* could not be installed: its tests are skipped (make test tries again)"
