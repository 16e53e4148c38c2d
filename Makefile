# Each recipe sets up .venv by itself. PYTHON=python3.12 make ... picks the interpreter.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# "--log-output" lets the lines of a running notebook through to the terminal
RUN := $(BIN)/papermill --log-output --no-progress-bar --request-save-on-cell-execute

.PHONY: help setup demo test lab notebooks bench check

help:
	@echo "make demo       a clip drawn by a model that was trained on this machine just now (about 6 minutes)"
	@echo "make test       all tests"
	@echo "make lab        JupyterLab on the notebooks"
	@echo "make bench      what docs/performance.md quotes"
	@echo "make notebooks  regenerate every .ipynb from its .py"
	@echo "make check      ruff, and that every .ipynb equals its .py"

setup: $(READY)

$(READY): requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)

demo: setup
	mkdir -p demo
	$(RUN) notebooks/01_extract_frames.ipynb demo/01_extract_frames.ipynb -p source sample -p dataset_root demo/dataset
	$(RUN) notebooks/02_train.ipynb demo/02_train.ipynb -p preset demo -p dataset_root demo/dataset -p run_dir demo/run \
		-p time_budget_minutes 3.75
	$(RUN) notebooks/03_generate.ipynb demo/03_generate.ipynb -p run_dir demo/run -p source dataset:bigbuckbunny/20 \
		-p num_frames 64 -p out_dir demo/generated
	@echo "done: open demo/generated/video.mp4 (or video.gif); the pages that made it are demo/*.ipynb"

test: setup
	$(BIN)/python -m pytest

lab: setup
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" notebooks/02_train.ipynb

notebooks: setup
	$(BIN)/jupytext --to ipynb --update notebooks/*.py

# ORIGINAL=path/to/kaggle.py also runs your copy of the public script, its step and ours in turn
bench: setup
	$(BIN)/python bench/steps.py
	if [ -n "$(ORIGINAL)" ]; then \
		$(BIN)/python data_prep/extract_frames.py sample dataset_sample/128x128 --height 128 --width 128 && \
		$(BIN)/python bench/original.py speed "$(ORIGINAL)" dataset_sample/128x128; fi

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest tests/test_notebooks.py -k pair
