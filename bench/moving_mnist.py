"""Moving MNIST, ten frames given and ten predicted: TinyDreams, and OpenSTL's models trained for as long.

    python data_prep/make_moving_mnist.py MNIST
    python bench/moving_mnist.py MNIST RUN --steps 6000
    python bench/moving_mnist.py MNIST --openstl FOLDER --model simvp --minutes 60 --widths 8 64 4 --rate 6e-3

The first trains RUN, or goes on with it, and prints the processor time that it took, which the second gives
to a model of OpenSTL. FOLDER is your own copy of chengtan9907/OpenSTL; its models also need `pip install
timm einops`. They learn from the same file by OpenSTL's recipe (Adam, one cycle of the learning rate,
batches of 16), with the widths and the rate that are asked for. Figures are in OpenSTL's form: squared and
absolute errors of pixels in [0, 1], summed over a frame, averaged over the frames and sequences of the test
set. With neither, the last given frame is repeated.
"""

import argparse
import math
import sys
import time
import types
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mtld_core.frames import to_uint8
from mtld_core.media import strip
from mtld_core.runtime import command
from mtld_core.systems.opening import open_run
from mtld_core.train import train

GIVEN, LENGTH, SIZE = 10, 20, 64
BATCH = 16  # OpenSTL's
PATCH = 4  # ConvLSTM sees squares of so many pixels as channels
WARM_UP, FIRST, LAST = (
    0.3,
    25,
    1e4,
)  # one cycle: share of it that rises, from rate / FIRST; it ends at that / LAST
FORCED = 0.5  # share of its training in which ConvLSTM's true frames give way to its own


def sequences(path, count=None):
    """The grey of a file's first `count` sequences: uint8 `[N, 20, 64, 64]`."""
    with h5py.File(path) as file:
        rows = len(file["frames"]) if count is None else count * LENGTH
        parts = [file["frames"][i : i + 1000, ..., 0] for i in range(0, rows, 1000)]
    return np.concatenate(parts)[:rows].reshape(-1, LENGTH, SIZE, SIZE)


class SimVP:
    """OpenSTL's SimVP with gated spatio-temporal attention. widths: hid_S, hid_T and N_T."""

    WIDTHS = (64, 512, 8)

    def __init__(self, widths):
        from openstl.models.simvp_model import SimVP_Model

        spatial, temporal, blocks = widths
        shape = (GIVEN, 1, SIZE, SIZE)
        self.net = SimVP_Model(shape, hid_S=spatial, hid_T=temporal, N_S=4, N_T=blocks, model_type="gSTA")

    def loss(self, clip, share):
        """clip: `[B, 20, 1, 64, 64]`. share: of the training that is done."""
        return (self.predict(clip[:, :GIVEN]) - clip[:, GIVEN:]).square().mean()

    def predict(self, given):
        return self.net(given.contiguous())


class ConvLSTM:
    """OpenSTL's ConvLSTM with scheduled sampling. widths: of its layers."""

    WIDTHS = (128, 128, 128, 128)

    def __init__(self, widths):
        from openstl.models.convlstm_model import ConvLSTM_Model

        shape = types.SimpleNamespace(
            in_shape=(GIVEN, 1, SIZE, SIZE),
            patch_size=PATCH,
            filter_size=5,
            stride=1,
            layer_norm=0,
            reverse_scheduled_sampling=0,
            pre_seq_length=GIVEN,
            aft_seq_length=LENGTH - GIVEN,
        )
        self.net = ConvLSTM_Model(len(widths), widths, shape)

    def loss(self, clip, share):
        truth = max(0.0, 1 - share / FORCED)
        told = torch.rand(len(clip), LENGTH - GIVEN - 1) < truth
        return self._draw(clip, told, return_loss=True)[1]

    def predict(self, given):
        clip = torch.cat([given, torch.zeros_like(given)], 1)
        told = torch.zeros(len(clip), LENGTH - GIVEN - 1)
        made, _ = self._draw(clip, told, return_loss=False)  # [B, 19, 16, 16, 16]
        return F.pixel_shuffle(made[:, GIVEN - 1 :].permute(0, 1, 4, 2, 3), PATCH)

    def _draw(self, clip, told, return_loss):
        squares = F.pixel_unshuffle(clip, PATCH).permute(0, 1, 3, 4, 2)  # [B, 20, 16, 16, 16]
        told = told.float()[:, :, None, None, None].expand(-1, -1, *squares.shape[2:])
        return self.net(squares, told, return_loss=return_loss)


MODELS = {"simvp": SimVP, "convlstm": ConvLSTM}


def one_cycle(share):
    """The learning rate over its highest when this share of the training is done, as OneCycleLR has it."""
    if share < WARM_UP:
        return _between(1 / FIRST, 1, share / WARM_UP)
    return _between(1, 1 / FIRST / LAST, (share - WARM_UP) / (1 - WARM_UP))


def _between(first, last, share):
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def train_theirs(model, clips, minutes, rate, seed):
    """Train for so many minutes of processor time. clips: uint8 `[N, 20, 64, 64]`."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.net.parameters(), rate)
    model.net.train()
    steps = 0
    started = time.process_time()
    while (share := (time.process_time() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * one_cycle(share)
        rows = torch.randint(len(clips), (BATCH,), generator=generator)
        loss = model.loss(torch.from_numpy(clips[rows]).unsqueeze(2) / 255, share)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if steps % 200 == 0:
            print(f"{100 * share:3.0f} %, step {steps}: loss {loss.item():.4f}", flush=True)
    model.net.eval()
    return steps


# what TinyDreams' preset `small` is told here: plain video, all ten frames seen, no memory for games
PLAIN = {
    "action_mode": "none",
    "context_frames": GIVEN,
    "older_frames": (),
    "rollout_frames": 5,
    "output": "residual",
    "moving_weight": 0.0,
    "context_noise": 0.0,
    "context_fade": 0.0,
    "latents": 0,
    "tokenizer_filters": (32, 64),
    "decoder_filters": (64, 32),
    "lr_muon": 0.02,
}
TRAINING = {
    "batch_size": 8,
    "time_budget_minutes": 0,
    "eval_horizon": LENGTH - GIVEN,
    "long_horizon": LENGTH - GIVEN,
    "life_horizon": 0,
}


class Ours:
    """TinyDreams, trained for so many steps. It draws what comes frame by frame."""

    def __init__(self, data, run, steps, seed):
        began = time.process_time()
        settings = PLAIN | TRAINING
        train("tinydreams", "small", data, settings, run_dir=str(run), steps=steps, seed=seed)
        print(f"{(time.process_time() - began) / 60:.1f} minutes of processor time, judging included")
        self.system = open_run(run)

    def predict(self, given):
        colours = (2 * given - 1).expand(-1, -1, 3, -1, -1)
        made = torch.cat(list(self.system.rollout(colours, LENGTH - GIVEN)), 1)  # [B, 10, 3, 64, 64]
        return (made.mean(2, keepdim=True) + 1) / 2


@torch.inference_mode()
def score(model, clips):
    """(squared, absolute) error of each horizon, summed over a frame: `[10]` each. clips: uint8."""
    squared, absolute = [], []
    for part in np.array_split(clips, math.ceil(len(clips) / 50)):
        part = torch.from_numpy(part).unsqueeze(2) / 255
        error = model.predict(part[:, :GIVEN]).clamp(0, 1) - part[:, GIVEN:]
        squared.append(error.square().sum((2, 3, 4)))
        absolute.append(error.abs().sum((2, 3, 4)))
    return torch.cat(squared).mean(0), torch.cat(absolute).mean(0)


@torch.inference_mode()
def draw(model, clips, path):
    """Save a picture of what is predicted, below the truth. clips: uint8 `[2, 20, 64, 64]`."""
    given = torch.from_numpy(clips[:, :GIVEN]).unsqueeze(2) / 255
    made = to_uint8(2 * model.predict(given).clamp(0, 1).expand(-1, -1, 3, -1, -1) - 1).numpy()
    rows = []
    for clip, frames in zip(clips[..., None].repeat(3, -1), made, strict=True):
        rows += [np.concatenate([clip[:GIVEN:3], clip[GIVEN:]]), np.concatenate([clip[:GIVEN:3], frames])]
    numbers = [*range(1, GIVEN + 1, 3), *range(GIVEN + 1, LENGTH + 1)]
    Image.fromarray(strip(rows, ["truth", "made"] * len(clips), list(map(str, numbers)))).save(path)


class Last:
    """The last given frame repeated."""

    def predict(self, given):
        return given[:, -1:].expand(-1, LENGTH - GIVEN, -1, -1, -1)


def theirs(given):
    """The model of OpenSTL that was asked for, trained."""
    sys.path.insert(0, str(given.openstl))
    for name in ("openstl", "openstl.models"):  # without what their other models need
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(given.openstl / name.replace(".", "/"))]
    kind = MODELS[given.model]
    model = kind(given.widths or kind.WIDTHS)
    parameters = sum(p.numel() for p in model.net.parameters())
    clips = sequences(given.data / "train.h5")
    steps = train_theirs(model, clips, given.minutes, given.rate, given.seed)
    print(f"{parameters / 1e6:.2f} M parameters, {steps} steps")
    return model


@command
def main():
    parser = argparse.ArgumentParser(description="Moving MNIST, ten frames of ten, beside OpenSTL.")
    parser.add_argument("data", type=Path, help="what data_prep/make_moving_mnist.py made")
    parser.add_argument("run", nargs="?", type=Path, help="of TinyDreams, trained into this folder")
    parser.add_argument("--steps", type=int, default=6000, help="of that run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--openstl", type=Path, help="your own copy of chengtan9907/OpenSTL")
    parser.add_argument("--model", choices=MODELS, default="simvp")
    parser.add_argument("--minutes", type=float, default=60, help="of processor time, for OpenSTL's model")
    parser.add_argument(
        "--widths", type=int, nargs="+", help="simvp: hid_S, hid_T, N_T; convlstm: of the layers"
    )
    parser.add_argument("--rate", type=float, default=1e-3, help="the cycle's highest learning rate")
    parser.add_argument("--sequences", type=int, default=10_000, help="of the test set, the first")
    parser.add_argument("--picture", type=Path, help="of the first two of them")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    if given.openstl:
        model = theirs(given)
    elif given.run:
        model = Ours(given.data, given.run, given.steps, given.seed)
    else:
        model = Last()
    clips = sequences(given.data / "test/test.h5", given.sequences)
    squared, absolute = score(model, clips)
    print(f"MSE {squared.mean():.2f}, MAE {absolute.mean():.2f}; MSE by horizon:", end=" ")
    print(*(f"{value:.1f}" for value in squared))
    if given.picture:
        draw(model, clips[:2], given.picture)


if __name__ == "__main__":
    sys.exit(main())
