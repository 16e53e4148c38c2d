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
# # From videos to frames
#
# Every model here learns from *arcs*: folders of numbered pictures, one folder for each stretch of film, in
# the order in which they were shown. This notebook makes them from the bundled clip, a video, a folder of
# videos, or a list of downloads.

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
# ## What to extract
#
# `source` is `"sample"`, a video, a folder of videos, or a text file with lines `url name [start]
# [duration]`. A 0 for `fps`, `height` or `width` leaves it as it is; `fit` says what happens when the shape
# differs: `"crop"` keeps the centre (the table says how much is lost, and which shape would keep more),
# `"pad"` adds black borders, `"stretch"` squashes. `start` and `duration` are seconds or `"m:ss"`, and a
# duration of 0 goes to the end. `drop_duplicates` leaves out frames that repeat the one before,
# `split_scenes` makes an arc of each shot, and `workers` are threads, 0 for one a core.

# %% tags=["parameters"]
source = "sample"
dataset_root = "dataset"
fps = 0
height = 64
width = 64
fit = "crop"
start = 0
duration = 0
drop_duplicates = False
split_scenes = False
workers = 0

# %%
names = "source dataset_root fps height width fit start duration drop_duplicates split_scenes workers"
settings = pages.parameters(globals(), names, inputs="source")

# %% [markdown]
# ## The arcs
#
# What is finished already, from the same video and with the same settings, is not done again.

# %%
from data_prep.extract_frames import extract

extraction = extract(**settings)

# %%
from IPython.display import Markdown

Markdown(extraction.table())

# %% [markdown]
# ## What they show
#
# Each row is one arc, eight frames from its first to its last. Look for three things before you train: shots
# that belong apart (`split_scenes`), stills and titles (`start`, `duration`), and pictures that say nothing
# at this size.

# %%
pages.show_picture(extraction.contact_sheet)

# %% [markdown]
# ## Next
#
# Notebook 02 trains on this folder.

# %%
extraction.check()
print(f"dataset_root = {str(extraction.dataset_root.resolve())!r}")
