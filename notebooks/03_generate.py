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
# # From one image to a sequence
#
# A trained run (notebook 02 makes one) continues a picture, translates a clip into another domain, or draws
# from noise, as its system does. Where the truth is known it is shown beside what the model made: what really
# came next, or what the clip looks like in the other domain.

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
# ## What to generate
#
# `source` is an image, a video (which goes on from its last frames), the web address of either, a folder of
# frames, or `"dataset:<arc>/<frame number>"` of the data that the run learned from; empty, it is the first
# window that the run is judged on. `checkpoint` is empty for the newest good one, `"best"`, a name such as
# `"step_00001000"`, or a file of weights (.pth, which `python -m mtld_core.share RUN weights.pth` writes).
# `num_frames` counts the given frame, too. `actions` is a JSON list, one for each predicted frame, for
# systems that are steered; empty, it is what was recorded after the frame. `fps` is that of the videos, and
# `interactive` is whether somebody watches, which `"auto"` finds out.
#
# A translator goes in the `direction` `"x_to_y"` or `"y_to_x"`: `source` then is a clip of the domain that it
# starts from (its folder, a single image, or from that frame on), of which at most `num_frames` frames are
# translated. A system that draws from noise does so where `source` is empty or `"noise"`; its first frame is
# the first sample, and `seed` decides which.

# %% tags=["parameters"]
run_dir = "runs/demo"
checkpoint = ""
source = ""
direction = "x_to_y"
num_frames = 48
actions = ""
out_dir = ""
fps = 12
seed = 0
interactive = "auto"

# %%
from mtld_core.generate import generate
from mtld_core.runtime import is_interactive, progress_bar

names = "run_dir checkpoint source direction num_frames actions out_dir fps seed interactive"
settings = pages.parameters(globals(), names, inputs="run_dir checkpoint source")
live = is_interactive(settings.pop("interactive"))

# %% [markdown]
# ## The sequence
#
# Its frames, an mp4, a GIF and `generation.json` lie in `out_dir`; where that is empty, each gets a folder of
# its own among the run's `samples/`. In the strip, `+5` is the fifth predicted frame; without a plus it is
# the frame's number. `comparison` says what the video shows from left to right; where the truth ends, its
# place is grey.

# %%
with progress_bar(total=settings["num_frames"], unit=" frames", delay=0.5) as bar:
    result = generate(**settings, progress=bar.update)
    bar.total = bar.n  # a clip may have had fewer
pages.show_table(result)

# %%
folder = Path(result["out_dir"])
pages.show_picture(folder / "strip.png")

# %%
print(result.get("comparison", "generated"))
pages.show_video(folder / ("comparison.mp4" if "comparison" in result else "video.mp4"))

# %% [markdown]
# ## Try others
#
# Where somebody sits in front of this notebook, here is a form: choose a run, a frame or a picture or video
# of your own (noise, or the direction of a translation, where the run knows them), and press Generate. Below
# hangs what was generated with the run before.

# %%
if live:
    from mtld_core.generate.panel import GeneratePanel

    display(GeneratePanel(run_dir, num_frames, fps, seed))

# %% [markdown]
# ## Play
#
# Where the run takes actions, steer it yourself: press Play and hold a key down while the pointer is over the
# panel (the buttons say which, and what they move), or go step by step. It starts at `source`; where that is
# empty, in the middle of things. The real game runs beside the dream where it can be stepped; the line below
# says at which step the two parted, and Sync brings them together. In a script or a batch job
# `Play(open_run(run_dir)).dream_on(1000, "sticky")` plays by itself, frame after frame.

# %%
if live and "actions" in result:
    from mtld_core.play.panel import PlayPanel

    display(PlayPanel(run_dir, fps, source))
