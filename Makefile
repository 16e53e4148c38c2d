# Each recipe sets up .venv by itself. PYTHON=python3.12 make ... picks the interpreter.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LOWEST := .venv-lowest
# compiled once: without it, every process would compile torch anew where Python may write no bytecode (4 of 6 seconds)
UV := --quiet --compile-bytecode
TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder
NOT_LOWEST := --ignore=tests/kaggle/test_kaggle_kernel.py --ignore=tests/kaggle/test_kaggle_push.py \
	--ignore=tests/test_upload.py
# "--log-output" lets the lines of a running notebook through to the terminal
RUN := $(BIN)/papermill --log-output --no-progress-bar --request-save-on-cell-execute

.PHONY: help setup demo pong test test-lowest lab notebooks bench check

help:
	@echo "make demo       a clip drawn by a model that was trained on this machine just now (about 6 minutes)"
	@echo "make pong       examples/pong anew: records Atari Pong, learns it, packs the run (about half an hour)"
	@echo "make test       all tests"
	@echo "make test-lowest  most of them, on the lowest versions that requirements.txt allows"
	@echo "make lab        JupyterLab on the notebooks"
	@echo "make bench      what docs/performance.md quotes"
	@echo "make notebooks  regenerate every .ipynb from its .py"
	@echo "make check      ruff, and that every .ipynb equals its .py"

setup: $(READY)

$(READY): requirements.txt requirements-dev.txt pyproject.toml
	@echo "setting up .venv: some minutes, about 6 GB"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -o '^uv[^ ]*' requirements-dev.txt)"
	$(BIN)/uv pip install $(UV) --python .venv -r requirements-dev.txt --editable .
	@touch $(READY)
	@echo "ready: make demo, make lab, or a command of .venv/bin"

demo: setup
	mkdir -p demo
	$(RUN) notebooks/01_extract_frames.ipynb demo/01_extract_frames.ipynb -p source sample -p dataset_root demo/dataset
	$(RUN) notebooks/02_train.ipynb demo/02_train.ipynb -p preset demo -p dataset_root demo/dataset -p run_dir demo/run \
		-p time_budget_minutes 5
	$(RUN) notebooks/03_generate.ipynb demo/03_generate.ipynb -p run_dir demo/run -p source dataset:bigbuckbunny/20 \
		-p num_frames 64 -p out_dir demo/generated
	@echo "done: open demo/generated/video.mp4 (or video.gif); the pages that made it are demo/*.ipynb"

pong: setup
	mkdir -p pong
	[ -f pong/pong.h5 ] || $(BIN)/python data_prep/record_game.py --env ALE/Pong-v5 --steps 16000 --seed 1 --out pong/pong.h5
	$(RUN) notebooks/02_train.ipynb pong/02_train.ipynb -p system tinydreams -p preset small -p dataset_root pong/pong.h5 \
		-p run_dir pong/tinydreams -p seed 1
	rm -rf pong/shared
	$(BIN)/python -m mtld_core.share pong/tinydreams pong/shared/pong --half
	rm -rf examples/pong && mkdir -p examples && mv pong/shared/pong examples/pong
	mkdir examples/pong/previews && cp "$$(ls pong/tinydreams/previews/step_*.png | tail -1)" examples/pong/previews/
	@echo "done: open notebook 03 with run_dir = examples/pong"

# two at a time, each on one core, the longest files first (tests/conftest.py); then those that watch the clock, with the
# machine to themselves
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) -m "not clocked"
	$(BIN)/python -m pytest -m clocked

# Every requirement, direct ones only, at the lowest version that the two files allow. The package is not installed there, but
# imported from here.
$(LOWEST)/.ready: requirements.txt requirements-dev.txt $(READY)
	$(PYTHON) -m venv --clear $(LOWEST)
	$(BIN)/uv pip install $(UV) --python $(LOWEST) --resolution lowest-direct -r requirements-dev.txt
	touch $@

# not what watches the clock, what no version can change, or what asks about the client or the kernel
test-lowest: $(LOWEST)/.ready
	PYTHONPATH="$(CURDIR)" OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(TWO) -m "not clocked and not versionless" \
		$(NOT_LOWEST)

lab: setup
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" notebooks/02_train.ipynb

notebooks: setup
	$(BIN)/jupytext --to ipynb --update notebooks/[0-9]*.py

# ORIGINAL=path/to/kaggle.py and TINYWORLDS=path/to/tinyworlds also run your copies of the public code in turn with ours
bench: setup
	$(BIN)/python bench/tables.py
	if [ -n "$(ORIGINAL)" ]; then \
		$(BIN)/python data_prep/extract_frames.py sample dataset_sample/128x128 --height 128 --width 128 && \
		$(BIN)/python bench/original.py speed "$(ORIGINAL)" dataset_sample/128x128; fi
	if [ -n "$(TINYWORLDS)" ]; then $(BIN)/python bench/tinyworlds.py "$(TINYWORLDS)"; fi

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest tests/notebooks/test_notebooks.py -k pair
