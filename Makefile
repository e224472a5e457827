# Every target sets itself up: a virtual environment in .venv, made anew when pyproject.toml or requirements.lock change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup lock demo test pytest test-long test-gpu lint docs bench bench-full chaos fuzz soak test-lowest audit secrets clean

setup: $(READY)

$(READY): pyproject.toml requirements.lock infra/setup.sh
	PYTHON=$(PYTHON) sh infra/setup.sh $(VENV)
	touch $(READY)

# Newer versions of everything, tried at once. The lock names public versions and no index, so that every machine takes
# its own; where a machine keeps wheels of its own (PIP_FIND_LINKS), they are not looked at.
lock: $(READY)
	env -u PIP_FIND_LINKS -u UV_FIND_LINKS $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--all-extras --no-annotate --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml
	$(MAKE) test

demo: $(READY)
	$(BIN)/hybrid demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Linters run beside the first tests, which wait for servers.
test: $(READY)
	$(MAKE) --jobs 2 lint docs pytest

# Files go to the two processes in the order of pyproject.toml's testpaths, the longest first. A test that hangs where
# no signal reaches it (in a library, or in what cleans up after one) tells where all threads are, and ends the run.
HANGS := 1800
pytest: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
		--override-ini faulthandler_timeout=$(HANGS) --override-ini faulthandler_exit_on_timeout=true

# What takes minutes a test: accidents of nodes and stores, several hosts, every page and file searched for passwords.
test-long: $(READY)
	$(BIN)/python -m pytest -m long

# What only a GPU can show; on a machine with one.
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu tests/integration/test_gpu.py

# Figures and their report in docs/benchmarks.md: 20 minutes or so of two cores; bench-full runs
# other programs and an earlier commit, too, and takes an hour and a half.
# ONLY="captioning waiting" runs some lines.
ONLY ?=
bench: $(READY)
	$(BIN)/python -m tests.benchmarks $(ONLY)

bench-full: $(READY)
	$(BIN)/python -m tests.benchmarks $(ONLY) --full

# The site from docs/, the other Markdown and the docstrings, in site/; a dead link is an error.
docs: $(READY)
	rm -rf $(VENV)/docs
	mkdir -p $(VENV)/docs
	git ls-files -z -- '*.md' '*.png' '*.svg' '*.py' '*.yaml' '*.yml' '*.sh' '*.json' '*.toml' '*.lock' '*.env' LICENSE Makefile infra | \
		xargs -0 cp --parents --target-directory $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

# The matrix of accidents (about half a minute a run) and its table in tests/chaos/README.md; then those of packs.
RUNS ?= 224
SEED ?= 1
chaos: $(READY)
	$(BIN)/python -m tests.chaos --runs $(RUNS) --seed $(SEED)
	$(BIN)/python -m pytest -m long tests/chaos/test_compacting.py

# Thousands of hostile shards (an hour or so), and a small table night after night: tables in tests/chaos/README.md.
SHARDS ?= 5000
fuzz: $(READY)
	$(BIN)/python -m tests.chaos.fuzz --shards $(SHARDS) --seed $(SEED)

MINUTES ?= 15
soak: $(READY)
	$(BIN)/python -m tests.chaos.soak --minutes $(MINUTES)

# The oldest versions that pyproject.toml allows, in an environment of their own. Old PyTorch comes from PyPI with CUDA
# (2.5 GB): UV_TORCH_BACKEND=cpu takes PyTorch's own builds for CPUs, and UV_CONSTRAINT names a file of versions to keep.
LOWEST := .venv-lowest
LOWEST_TESTS ?= tests/pipelines tests/jobs tests/hybrid_models
test-lowest: $(READY)
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $(LOWEST)
	$(BIN)/uv pip install --quiet --compile-bytecode --resolution lowest-direct --python $(LOWEST)/bin/python -e '.[dev,s3]'
	$(LOWEST)/bin/python -m pytest -p no:cacheprovider $(LOWEST_TESTS)

# Known vulnerabilities of the versions that the image is built of. It asks PyPI, and fails where PyPI does not answer.
audit: $(READY)
	$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement requirements.lock || \
		{ echo "make audit: a version has a known vulnerability, or PyPI told nothing about one: see above" >&2; exit 1; }

# Nothing in the repository may look like a key; what only looks like one is listed in .secrets.baseline.
secrets: $(READY)
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --baseline .secrets.baseline

clean:
	rm -rf $(VENV) $(LOWEST) site demo-out .pytest_cache .mypy_cache .ruff_cache
