# `make help` lists the targets. Each installs what it needs into .venv, once per change of the lock.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PYTEST_ARGS ?= -n 2 --dist loadfile
# Which of conf/ci: those that need no Ray.
SMOKE ?= mp_*
TORCH_INDEX ?=

BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
INSTALL := $(BIN)/python -m pip install $(if $(CI),--progress-bar off)
# No build isolation: what builds is hash-pinned too (requirements/build.txt).
INSTALL_LOCKED := $(INSTALL) --no-build-isolation --require-hashes

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test test-long smoke sanitize check lint format format-check types spelling lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22
	@echo
	@echo '  ARGS="dp=2 model=tiny"      overrides for make serve'
	@echo '  PYTEST_ARGS="-x tests/..."  options for make test (now: $(PYTEST_ARGS))'
	@echo '  SMOKE="*"                   configs for make smoke (now: $(SMOKE))'
	@echo '  PYTHON=python3.12           the Python that .venv is made with (3.11 or newer)'
	@echo '  TORCH_INDEX=URL             package index to take torch from, to choose a CPU or CUDA build'

serve: $(VENV)/.flotilla  ## install what is missing and serve the default model
	$(BIN)/python -m launcher $(ARGS)

test: $(VENV)/.flotilla $(VENV)/.dev  ## install what is missing and run every test but the long ones
	$(BIN)/python -m pytest -m 'not long' $(PYTEST_ARGS)

test-long: $(VENV)/.flotilla $(VENV)/.dev  ## run the long tests: Ray clusters that grow, die, have addresses of their own
	$(BIN)/python -m pytest -m long $(PYTEST_ARGS)

smoke: $(VENV)/.flotilla  ## run the smoke tests in conf/ci, each a real deployment
	$(BIN)/python -m launcher -m '+ci=glob($(SMOKE))' $(ARGS)

SANITIZERS := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined
# Python and torch have leaks of their own, which say nothing about the kernels.
sanitize: $(VENV)/.flotilla $(VENV)/.dev  ## run the kernels' tests with the compiler's sanitizers
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
	    $(BIN)/python -m pytest tests/engine/model/kernels -k 'not three_thousand' \
	    --hypothesis-profile sanitize --kernel-flags '$(SANITIZERS)'

check: lint format-check types spelling test  ## everything CI runs

lint: $(VENV)/.dev  ## look for mistakes
	$(BIN)/ruff check .

format: $(VENV)/.dev  ## format the code and sort the imports
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

format-check: $(VENV)/.dev  ## fail where `make format` would change something
	$(BIN)/ruff format --check .

types: $(VENV)/.flotilla $(VENV)/.dev  ## check the types
	$(BIN)/mypy

spelling: $(VENV)/.dev  ## check the spelling
	$(BIN)/codespell

# Each stamp is written last, so an interrupted install is done again.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Flotilla needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)"; \
	    echo "hint: make PYTHON=python3.12 ..."; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make a virtual environment: its venv or ensurepip module is missing"; \
	    echo "hint: on Debian and Ubuntu, install the package python3-venv"; exit 1; } >&2
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.made requirements/build.txt requirements/runtime.txt requirements/torch.txt
	@echo "Installing what Flotilla needs to run (about 1 GB with a CPU build of torch)"
	$(INSTALL_LOCKED) -r requirements/build.txt
	$(INSTALL_LOCKED) -r requirements/runtime.txt
	$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r requirements/torch.txt
	@touch $@

$(VENV)/.flotilla: $(VENV)/.runtime pyproject.toml
	$(INSTALL) --quiet --no-build-isolation --no-deps --editable .
	$(BIN)/python -m pip check
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt
	@echo "Installing what the tests and checks need"
	$(INSTALL_LOCKED) -r requirements/dev.txt
	$(BIN)/python -m pip check
	@touch $@

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-package torch \
    --custom-compile-command 'make lock' $(LOCK_ARGS)

lock: $(VENV)/.made  ## write requirements/ anew from pyproject.toml (LOCK_ARGS=-U for the newest versions)
	$(INSTALL_LOCKED) --quiet -r requirements/lock.txt
	$(COMPILE) pyproject.toml -c requirements/torch.txt -o requirements/runtime.txt
	$(COMPILE) --group build -c requirements/runtime.txt -o requirements/build.txt
	$(COMPILE) --group test --group check -c requirements/runtime.txt -o requirements/dev.txt
	$(COMPILE) --group lock -o requirements/lock.txt

clean:  ## remove .venv and everything else that was made here
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis outputs multirun
	find . -name __pycache__ -prune -exec rm -rf {} +
