# make run: everything set up, then a language model taught to add on this machine.   make test: the tests.
# Both install what is missing into .venv on their first run, and need no network after it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: setup run cartpole test test-long check format generate site bench prove lock advisories clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \?//p' Makefile | head -3
	@echo "targets: setup run cartpole test test-long check format generate site bench prove lock advisories clean"

setup: $(STAMP)

# The lock is complete, so pip must not resolve anything itself: --no-deps.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "Rollcall needs Python 3.11 or 3.12, this is %d.%d: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements.lock
	@# Where the index offers torch for CUDA only, its libraries are dependencies of their own.
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

run: $(STAMP)
	$(BIN)/rollcall train arithmetic-grpo

cartpole: $(STAMP)
	$(BIN)/rollcall train cartpole-ppo

# Files side by side: most of a run's time on two cores is waiting for processes that start.
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
NOT_HERE = not prove and not gpu

test: $(STAMP)
	$(PYTEST) -m "$(NOT_HERE) and not long"

# Whole runs that are killed, resumed and compared, mostly: as much again.
test-long: $(STAMP)
	$(PYTEST) -m "$(NOT_HERE) and long"

# mypy cannot follow package-dir editable installs: it reads the packages through .types/rollcall.
check: $(STAMP)
	@rm -rf .types && mkdir -p .types/rollcall
	@cd .types/rollcall && ln -s ../../actors ../../cluster ../../learners ../../reward_service ../../deploy ../../deploy/package/* .
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p rollcall.cluster -p rollcall.actors -p rollcall.learners -p rollcall.reward_service -p rollcall.deploy -p tests -p benchmarks
	$(BIN)/python -m pytest -q tests/test_house.py tests/test_documents.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What is generated and committed: dashboards, alert rules for Kubernetes, the table of metrics, the list of settings.
generate: $(STAMP)
	$(BIN)/python -m rollcall.deploy.tools.monitoring.files
	$(BIN)/python -m rollcall.deploy.documents.known_settings

# The documentation as a site in build/site, warnings as errors. It needs the extra docs: pip install -e '.[docs]'
site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

bench: $(STAMP)
	$(BIN)/rollcall bench gym --peer sb3

# The long proofs: every recipe to its result. Hours on two cores; see docs/results.md.
prove: $(STAMP)
	$(BIN)/python -m pytest -m prove
	$(BIN)/python -m benchmarks.prove
	$(BIN)/python -m benchmarks.prove_tabular
	$(BIN)/python -m benchmarks.prove_preferences
	$(BIN)/python -m benchmarks.prove_monitoring
	$(BIN)/python -m benchmarks.prove_jobs
	$(BIN)/python -m benchmarks.prove_image
	$(BIN)/python -m benchmarks.prove_models --runtime serial ray
	$(BIN)/python -m benchmarks.prove_models --real-vocabularies
	$(BIN)/python -m benchmarks.prove_logits
	$(BIN)/python -m benchmarks.prove_books --tickets 20000000
	$(BIN)/python -m benchmarks.simulate --seeds 10000
	$(BIN)/python -m benchmarks.prove_soak
	@# An hour for a thousand: make prove CHAOS=1000
	$(if $(CHAOS),$(BIN)/python -m benchmarks.prove_chaos --kills $(CHAOS) --side-by-side 2)

lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet pip-tools
	.venv-lock/bin/python -m piptools compile --quiet --strip-extras --extra mujoco --extra atari --extra maths --extra dev --extra lm-cpu --no-emit-index-url --no-emit-find-links --no-header --no-annotate --allow-unsafe --output-file requirements.lock pyproject.toml
	@# One lock for every build of torch: the label after the plus names the build, not the version.
	sed -i 's/^torch==\([0-9.]*\)+.*/torch==\1/' requirements.lock
	@# vLLM asks for these, but their only builds are for CUDA, and with one of them transformers cannot be imported.
	sed -i '/^\(torchvision\|torchaudio\|torchcodec\|triton\)==/d' requirements.lock
	rm -rf .venv-lock

# Known holes in what is locked. It asks a database on the network, so it is no part of `check`.
advisories:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit
	.venv-audit/bin/python -m pip_audit --no-deps --disable-pip --requirement requirements.lock
	rm -rf .venv-audit

clean:
	rm -rf $(VENV) .types build *.egg-info .mypy_cache .ruff_cache .pytest_cache
