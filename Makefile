# Every tool comes from .venv, which is made where it is missing or older than the lock.
#   make PYTHON=python3.12 venv     with another Python (3.10 to 3.13)
#   make test PYTEST_ARGS="-k moe"  with other pytest options
PYTHON ?= python3
CHECKPOINT ?= tests/data/qwen3moe-tiny
PROMPT ?= Once upon a time
SANITIZER ?= compute-sanitizer
# Two workers keep two cores busy; a module stays on one worker, so its fixtures are built once.
PYTEST_ARGS ?= -n 2 --dist loadscope

BIN := .venv/bin
VENV := .venv/.made
TOOLKIT := .venv/.toolkit_made
LOCKED_EXTRAS := verify serve bench ray tensorrt-rtx cuda dev
CXX_FILES = $(shell find plugins tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-config --no-annotate --upgrade \
    --custom-compile-command 'make lock'

# A module's bytecode is written at its first import: compiling all 12,000 files at installation takes a minute more.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv demo test sanitize lint format typecheck plugins wheel lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name text; do \
	    printf 'make %-10s %s\n' "$$name" "$$text"; done

venv: $(VENV) ## the virtual environment: .venv

$(VENV): requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and sys.version.split()[0] \
	    + " is too old: this needs Python 3.10 or later. Name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --no-compile -r requirements/dev.lock
	$(BIN)/pip install --no-deps --no-build-isolation -e .
	touch $@

demo: $(VENV) ## the main job on the small checkpoint of the tests: export, verify, generate
	rm -rf demo
	$(BIN)/qwen3moe-export onnx $(CHECKPOINT) -o demo/export
	$(BIN)/qwen3moe-export verify $(CHECKPOINT) --report demo/report.html
	$(BIN)/qwen3moe-export generate demo/export --weights $(CHECKPOINT) --prompt "$(PROMPT)" --max-new-tokens 64

test: $(VENV) ## the tests that need no GPU
	$(BIN)/pytest $(PYTEST_ARGS)

SANITIZE = $(BIN)/python tests/plugins/sanitize.py plugins/qwen3moe_plugins/lib/libqwen3moe_kernels.so
SANITIZER_OPTIONS = --error-exitcode 1 --kernel-name kns=qwen3moe

# racecheck itself fails among the products, which `chain` has too (benchmarks/results/h200_sanitizer.md).
sanitize: $(VENV) ## every kernel under compute-sanitizer, on a GPU; SANITIZER=PATH names it
	$(SANITIZER) --tool memcheck $(SANITIZER_OPTIONS) $(SANITIZE)
	$(SANITIZER) --tool synccheck $(SANITIZER_OPTIONS) $(SANITIZE)
	$(SANITIZER) --tool racecheck $(SANITIZER_OPTIONS) $(SANITIZE) --ops fill,norm,attention,moe,sample

lint: $(VENV) ## ruff, mypy and clang-format, changing nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV) ## sorts imports and formats Python, C++ and CUDA
	$(BIN)/ruff check --select I --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

typecheck: $(VENV) ## mypy alone
	$(BIN)/mypy

plugins: $(TOOLKIT) ## the CUDA kernels and TensorRT plugins; options in plugins/plugins.mk
	$(MAKE) -f plugins/plugins.mk PYTHON=$(BIN)/python CMAKE=$(BIN)/cmake

$(TOOLKIT): $(VENV) requirements/plugins.lock
	$(BIN)/pip install --no-compile -r requirements/plugins.lock
	touch $@

wheel: plugins ## a wheel with the plugin libraries, in dist/; they need the C library of the machine that built them
	$(BIN)/pip wheel -q --no-deps --no-build-isolation -w dist . \
	    --config-settings=--build-option=--plat-name=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_platform().replace("-", "_"))')

# The CUDA packages that torch names for itself on Linux stay out of the lock: pip adds them where the torch build at
# hand asks for them, and a CPU build does not.
lock: $(VENV) ## writes requirements/*.lock anew
	$(LOCK) $(LOCKED_EXTRAS:%=--extra %) -c requirements/constraints.txt -o requirements/dev.lock pyproject.toml
	sed -i -E '/^(nvidia-|cuda-toolkit|triton)/d' requirements/dev.lock
	$(LOCK) --extra plugins-build -c requirements/dev.lock -o requirements/plugins.lock pyproject.toml

clean: ## removes all that was made, .venv too
	rm -rf .venv build dist demo *.egg-info plugins/qwen3moe_plugins/lib
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
