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
# # Train a small video model
#
# Give it a folder of frames (notebook 01 makes one), a system and a preset, and let it run. Everything that
# it learns goes into `run_dir`: stop it when you like, run this notebook again, and it goes on where it
# stopped.

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
# ## What to train
#
# The presets: `demo` learns a short clip by heart in a few minutes on a laptop, `small` is for a GPU and an
# evening, `original` has the source's own values, `tiny` takes seconds; docs/systems has a page for each
# system, with the others. `dataset_root="auto"` is what notebook 01 left in `dataset`, or where it was not
# run `"sample"`, the bundled clip. `steps=0` uses all of `time_budget_minutes`, or takes the preset's own
# number where that is 0, too. `batch_size=0` is the preset's. `resume` is `"auto"` (go on with what `run_dir`
# holds), `"never"`, or another run to begin from. `devices=0` trains on every GPU of this machine at once.
# `interactive` is whether somebody watches, which `"auto"` finds out. Any other setting goes into
# `overrides`, as JSON: `{"latent_dim": 128, "restitution": true}` (restitution: learning all of a film by
# heart); docs/training.md explains them.
#
# `mtld` continues pictures. `weight_rnn` draws pictures from noise, and goes on by watching them and
# re-weighting itself. `rl_v2v` translates clips between two domains, which nobody paired: the folders X and Y
# in `dataset_root` (data_prep/make_domains.py makes them). `tinydreams` learns a game from a recording
# (data_prep/record_game.py makes one). The world model is three runs: `tokenizer`, then `latent_actions`
# where nobody recorded the actions, then `dynamics`, whose overrides name the runs before:
# `{"tokenizer_run": "runs/tokenizer", "actions": "latent", "latent_actions_run": "runs/actions"}`.

# %% tags=["parameters"]
system = "mtld"
preset = "demo"
dataset_root = "auto"
run_dir = "runs/demo"
steps = 0
time_budget_minutes = 0
batch_size = 0
seed = 0
resume = "auto"
devices = 1
interactive = "auto"
overrides = "{}"

# %%
from mtld_core.runtime import is_interactive
from mtld_core.train import fit
from mtld_core.train.settings import build, open_data, plan

names = "system preset dataset_root run_dir steps time_budget_minutes batch_size"
names += " seed resume devices interactive overrides"
settings = pages.parameters(globals(), names, inputs="dataset_root resume")
root = settings.pop("dataset_root")
cls, config, training = plan(**settings)
live = is_interactive(training.interactive)
pages.show_folded("all settings", vars(config) | vars(training))

# %% [markdown]
# ## The data
#
# Frames are decoded once, kept as bytes in memory, and turned into numbers batch by batch.

# %%
dataset = open_data(root, config, training.controls_lead_to)
pages.show_table(dataset.describe())

# %%
from mtld_core.media import strip

rows = []
for domain in dataset.domains:
    every = max(1, len(domain.frames) // 8)
    rows.append(domain.frames[::every][:8])
pages.show_picture(strip(rows))

# %% [markdown]
# ## A batch
#
# Training draws windows of `needs().window` frames, in another order in every epoch. Frames are
# `[batch, time, channels, height, width]`, from -1 to 1; `key` is one number a sample, from which all of its
# chance is drawn.

# %%
from mtld_core.data import Batches
from mtld_core.train.fitting import fitted

model = build(cls, config, dataset, training.seed)
training = fitted(model, dataset, training)  # with fit_batch, a GPU's batch is found by trying
window = model.needs().window
starts = [domain.windows(window, training.cross_cuts) for domain in dataset.domains]
[batch] = Batches(dataset, starts, window, training.batch_size, training.seed).next()
pages.show_table({name: list(values.shape) for name, values in batch.items()})

# %% [markdown]
# ## The loss
#
# What training makes small, in the system's own words; of an adversarial system it is the generator's side.

# %%
import inspect

from IPython.display import Markdown

Markdown(f"```python\n{inspect.getsource(getattr(cls, 'generator_loss', cls.loss))}\n```")

# %% [markdown]
# ## What it will take
#
# Where somebody watches, some steps of a copy tell, and are thrown away: so this takes some seconds.

# %%
if live:
    from mtld_core.train.job import outlook

    print(outlook(model, dataset, training))

# %% [markdown]
# ## Training
#
# Where nobody watches (papermill, a batch run), it trains right here. SIGINT stops it: the step in progress
# ends, everything is saved, and the report is written.

# %%
report = None if live else fit(model, dataset, training)

# %% [markdown]
# ## What it learned
#
# A verdict; the losses over the steps; truth, rollout (what it draws from its own predictions) and error for
# some of the windows that it is judged on; where held actions lead (if it takes any), dreams of several ages
# (with `life_horizon`), and how far ahead it sees. Then the figures, with the baselines beside them, what ran
# where, and on what.

# %%
if report:
    print(report["verdict"])
    for name in ("losses", "previews/step_*", "previews/actions_*", "previews/life_*", "judgement"):
        for picture in sorted(Path(report["run_dir"]).glob(f"{name}.png"))[-1:]:
            pages.show_picture(picture)

# %%
from mtld_core.train.report import facts

if report:
    pages.show_table(facts(report) | report["metrics"])

# %% [markdown]
# ## Watch it train
#
# Where somebody sits in front of this notebook, training runs in the background from here on: the notebook
# stays usable, and the buttons act at once. *Stop* saves, judges and ends; *Go on* trains on from there.
# Where you change parameters above and run the cells again while it trains, the panel says what is new,
# and asks whether to train so. Hold the pointer over a figure or a button to read what it is. On Colab the
# panel may stand still until you press a button; *Refresh* does nothing else. When training has ended,
# save this page: what the run has come to stays in it.

# %%
if live:
    from mtld_core.train.panel import train_panel

    display(train_panel(model, dataset, training))

# %% [markdown]
# ## Next
#
# Notebook 03 draws a sequence from one image with this run: give it the same `run_dir`.
