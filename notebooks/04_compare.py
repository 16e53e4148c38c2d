# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How good is it, beside the others?
#
# Any number of runs (notebook 02 makes them), judged on the same frames: those that all of them hold out.
# Each run sees its own context before them. Beside them stands what costs nothing and has to be beaten: the
# last frame repeated, the median frame, each pixel going on as it changed, what moved moving on, and the
# training window that is nearest, looked up.

# %%
import importlib.util
import sys
from pathlib import Path

here = Path.cwd()
places = [here, *here.parents, *here.glob("*"), *Path("/content").glob("*")]
for depth in ("*", "*/*", "*/*/*", "*/*/*/*"):
    places += [found.parent for found in Path("/kaggle/input").glob(f"{depth}/mtld_core")]
for place in places:
    if (place / "mtld_core" / "__init__.py").is_file():
        sys.path.insert(0, str(place))
        break
address = "<its address>"
if not importlib.util.find_spec("mtld_core"):
    raise SystemExit(f"MTLD is not here. Run this, then this cell again: !git clone {address} mtld")
from mtld_core import pages, runtime

pages.setup()
runtime.install_missing()
print(runtime.machine())

# %% [markdown]
# ## What to compare
#
# `run_dirs` are the folders of the runs, separated by commas; empty, all that lie in `runs/` and learned the
# newest one's data, or `examples/pong` where there are none. `dataset_root` is empty where the runs say it:
# name it where the data has moved, or the runs learned from different data. `horizon` is how many frames are
# predicted; 0 is the least that one of the runs was judged on in training.

# %% tags=["parameters"]
run_dirs = ""
dataset_root = ""
horizon = 0
out_dir = ""
interactive = "auto"

# %%
from mtld_core.judge.compare import compare, runs_to_compare
from mtld_core.runtime import is_interactive, progress_bar

settings = pages.parameters(globals(), "run_dirs dataset_root horizon out_dir interactive", "dataset_root")
live = is_interactive(settings.pop("interactive"))
chosen = [name.strip() for name in settings.pop("run_dirs").split(",") if name.strip()]
chosen = chosen or runs_to_compare()
print(*chosen, sep="\n")

# %% [markdown]
# ## The table
#
# Where nobody watches, it is made right here; else press Compare further below. Higher is better: `psnr`
# (dB), `ssim`, and the skills. `skill_db` is the gain over the better of last and median frame, as in each
# run's report, `moving_skill_db` the same over the pixels that move, `skill_best_db` over the best of all
# baselines. Lower is better: `lpips`, and the Frechet distance, whose name says which features it stands on.
# `flicker` is best near that of what really came. `frames_per_second` is one sequence at a time on this
# machine; memory and seconds are those of the training. table.csv has more columns, compare.json all figures.

# %%
from IPython.display import Markdown

result = None
if not live:
    with progress_bar(desc="comparing", unit=" pieces") as bar:
        result = compare(chosen, **settings, tick=lambda: bar.update())
    folder = Path(result["out_dir"])
    display(Markdown((folder / "table.md").read_text()))

# %% [markdown]
# ## How far ahead, and how it looks
#
# The curves: how fast each loses the truth. The strips: for two windows what really came, and what each run
# and the best baseline make of it.

# %%
if result:
    for picture in ("horizon.png", "strips.png"):
        pages.show_picture(folder / picture)

# %% [markdown]
# ## Choose and compare
#
# Where somebody sits in front of this notebook: all runs found, here and in examples/. Tick those to compare,
# press Compare, and table and pictures appear below; Cancel ends it.

# %%
if live:
    from mtld_core.judge.panel import ComparePanel

    display(ComparePanel(chosen, **settings))
