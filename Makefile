# `make` alone lists the targets. Variables: PYTHON, BACKEND, CMAKE_ARGS (see `make help`).

PYTHON ?= python3
BACKEND ?=
export CMAKE_ARGS

RUN := .venv/bin/
QUESTION := What is the capital of France? Answer in one sentence.

.PHONY: help setup demo test test-gpu fire soak wheels lint format types pins clean

help:
	@echo 'make setup   make .venv, install pinned packages, build llama.cpp for this machine'
	@echo 'make demo    set up, fetch two tiny models (600 MB), and ask them a question'
	@echo 'make test    set up, fetch three tiny models (850 MB), and run all tests'
	@echo 'make test-gpu BACKEND=cuda|vulkan|...   the tests of layers on a GPU; with vulkan also'
	@echo '             without one, where its driver for the CPU is installed (docs/gpu.md)'
	@echo 'make fire    kills, damaged files, full disks, jumping clocks: the whole campaign'
	@echo 'make soak    an hour of load on a server (docs/reliability.md has both)'
	@echo 'make wheels  build wheels of eva-local and llama-cpp-python for this machine, in dist/'
	@echo 'make lint    check style and format            make format  put both right'
	@echo 'make types   check types                       make clean   remove .venv and caches'
	@echo 'make pins    resolve the pinned packages again (needs uv)'
	@echo
	@echo 'PYTHON=python3.12   the Python to use, 3.11 or newer'
	@echo 'BACKEND=cuda        what llama.cpp runs on: cpu, cuda, metal, rocm, vulkan'
	@echo 'CMAKE_ARGS="-D..."  more options for llama.cpp; they win over ours'
	@echo 'Without BACKEND and CMAKE_ARGS, a build that is installed stays.'

setup:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("eva-local needs Python 3.11 or newer, and $(PYTHON) is %d.%d. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" % sys.version_info[:2])'
	@$(PYTHON) -m tools.environment
	@$(RUN)python -m tools.build_llama --backend '$(BACKEND)'

demo: setup
	@$(RUN)eva-local pull -e demo
	@$(RUN)eva-local run -e demo --max-tokens 60 --stats '$(QUESTION)'

test: setup
	@$(RUN)eva-local pull -e demo
	@$(RUN)eva-local pull -e trio
	@$(RUN)python -m pytest

test-gpu: setup
	@$(RUN)eva-local pull -e demo
	@$(RUN)python -m pytest tests/gpu

fire: setup
	@$(RUN)python -m tools.fire

soak: setup
	@$(RUN)python -m tools.fire --part soak --seconds 3600

wheels: setup
	@$(RUN)python -m tools.build_llama --copy dist
	@$(RUN)python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist

lint: setup
	@$(RUN)ruff check
	@$(RUN)ruff format --check
	@$(RUN)lint-imports --no-cache

format: setup
	@$(RUN)ruff check --fix
	@$(RUN)ruff format

types: setup
	@$(RUN)mypy

# llama-cpp-python is pinned apart: it is built from source, and pip must not choose its wheel.
PINS := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url --no-emit-package llama-cpp-python --quiet
pins:
	$(PINS) --output-file requirements.txt
	$(PINS) --extra dev --constraint requirements.txt --output-file requirements-dev.txt

clean:
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find eva_local tests tools -name __pycache__ -prune -exec rm -rf {} +
