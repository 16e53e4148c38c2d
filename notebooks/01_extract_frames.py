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
# # 1. From videos to frames
#
# Every model here learns from *arcs*: folders of numbered pictures, one folder for each stretch of film, in
# the order in which they were shown. This notebook makes them from the bundled clip, a video, a folder of
# videos, or a list of downloads.

# %%
import sys
from pathlib import Path

places = [Path.cwd(), *Path.cwd().parents, *Path.cwd().glob("*")]
sys.path[:0] = [str(place) for place in places if (place / "mtld_core" / "__init__.py").is_file()][:1]
from mtld_core import pages as notebook

notebook.setup()

# %% [markdown]
# `source` is `"sample"`, a video, a folder of videos, or a text file with lines `url name [start]
# [duration]`. A 0 for `fps`, `height` or `width` leaves it as it is; `fit` says what happens when the shape
# differs: `"crop"`, `"pad"` or `"stretch"`.

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
settings = notebook.parameters(globals(), names, inputs="source")

# %% [markdown]
# What is finished already, from the same video and with the same settings, is not done again.

# %%
from data_prep.extract_frames import extract

extraction = extract(**settings)

# %%
from IPython.display import Markdown

Markdown(extraction.table())

# %% [markdown]
# Each row is one arc, eight frames from its first to its last. Look for three things before you train: shots
# that belong apart (`split_scenes`), stills and titles (`start`, `duration`), and pictures that say nothing
# at this size.

# %%
notebook.show_picture(extraction.contact_sheet)

# %%
extraction.check()
print(f"Next: 02_train with dataset_root = {str(extraction.dataset_root.resolve())!r}")
