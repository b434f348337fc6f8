# The two commands: `make run` (the whole study in small, or DATA=... PRESET=full) and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  := $(shell sed -n 's/^torch==//p' constraints.txt)
CPU_INDEX := https://download.pytorch.org/whl/cpu

DATA   ?= generated
PRESET ?= tiny
OUT    ?= runs/demo
ARGS   ?=
# A file's name may have blanks, and so be more than one word.
SMALL  :=
ifeq ($(DATA),generated)
SMALL  := --epochs 6 --sweep.epochs 2
endif
# Of the tests; each takes up to 2 GiB.
WORKERS ?= 2

.PHONY: run test lint coverage docs install clean

run: install
	$(BIN)/redheart run --data "$(DATA)" --preset $(PRESET) --out "$(OUT)" $(SMALL) $(ARGS)

# Half of the time is starting Python: compiled sources are kept, whatever the environment says.
test: install lint
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# The suite once more, and which lines of the package it runs, in every process that it starts: twice as slow.
coverage: install
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m coverage run -m pytest --numprocesses $(WORKERS) --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy redheart
	$(BIN)/lint-imports

# The documents as a site in site/; one warning ends it. The theme's advertisement of its successor is not one of ours.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# What only the site needs is installed for the site only.
$(VENV)/docs: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

install: $(VENV)/installed

# With an NVIDIA GPU the package index's CUDA build of torch, elsewhere the CPU build:
# from where pip is already configured to look, else from PyTorch's own index. torchao is only compared with: it lies
# beside the environment, for it prints warnings in every process that loads transformers.
$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Red Heart needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(BIN)/pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then \
	  $(BIN)/pip install --quiet torch==$(TORCH); \
	else \
	  $(BIN)/pip install --quiet torch==$(TORCH)+cpu || \
	  $(BIN)/pip install --quiet torch==$(TORCH)+cpu --index-url $(CPU_INDEX); \
	fi
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt --upgrade --target $(VENV)/bench torchao
	touch $@

# What runs/ holds may have taken days.
clean:
	rm -rf $(VENV) site
