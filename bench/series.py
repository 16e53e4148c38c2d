"""How well MTLD's preset `series` restores a film, from one frame to those that follow.

python bench/series.py FILM OUT --overrides '{"steps": 8000}'     FILM: a folder of arcs
python bench/series.py FILM OUT --disturbed                       also from frames that are none of the film's

It trains one run into OUT on all windows of the film and rolls each of them. Printed is a line of JSON:
processor time of the training; PSNR over all windows and predicted frames, beside copying the priming frame;
both at the first horizon and the last; the least skill of a horizon; the mean of the worst twentieth of the
windows; and the share of windows whose priming frame is also found elsewhere, where the film goes on
otherwise, for what follows such a frame nobody can say. A run that lies in OUT already goes on, or is
measured again.
"""

import argparse
import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mtld_core.config import parse_object
from mtld_core.data import split_windows
from mtld_core.frames import evenly, to_uint8
from mtld_core.runtime import command
from mtld_core.systems.opening import open_run
from mtld_core.train import fit
from mtld_core.train.settings import build, open_data, plan

PIECE = 64  # windows that are rolled at once
PRIMING = 30  # frames that are disturbed
TWIN, OTHERWISE = 40.0, 25.0  # dB: above, two frames look the same; below, what follows them does not


def psnr(made, truth):
    """PSNR in dB of frames uint8 `[..., H, W, 3]`, one a frame; 100 dB at most."""
    squares = (made.float() - truth.float()).square().mean((-3, -2, -1)) / 255**2
    return -10 * squares.clamp(min=1e-10).log10()


def measured(system, frames, starts, given=None):
    """PSNR of each predicted frame, `[windows, horizons]`. given: priming frames in place of the film's."""
    length = system.config.sequence_length
    found = []
    for number, rows in enumerate(starts.split(PIECE)):
        context = frames[rows] if given is None else given.split(PIECE)[number]
        made = torch.cat(list(system.rollout(context[:, None], length - 1)), 1)
        truth = frames[rows[:, None] + torch.arange(1, length)]
        found.append(psnr(to_uint8(made), truth))
    return torch.cat(found)


def copied(frames, starts, length):
    """The same of the priming frame, repeated."""
    rows = [starts + far for far in range(1, length)]
    return torch.stack([psnr(frames[starts], frames[row]) for row in rows], 1)


def without_answer(frames, starts, length):
    """Share of the windows whose priming frame has a twin that another future follows."""
    pictures = frames.flatten(1).float() / 255
    squares = torch.cdist(pictures, pictures).square() / pictures.shape[1]
    apart = -10 * squares.clamp(min=1e-10).log10()
    later = [apart[starts + far][:, starts + far] for far in range(1, length)]
    unlike = torch.stack(later).mean(0) < OTHERWISE
    return ((apart[starts][:, starts] > TWIN) & unlike).any(1).float().mean().item()


def disturbed(picture):
    """A frame, `[H, W, 3]` uint8, as it may come from elsewhere: name -> frame."""
    image = Image.fromarray(picture.numpy())
    width, height = image.size
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=40)
    logo = image.copy()
    ImageDraw.Draw(logo).rectangle([width * 3 // 4, 4, width - 5, height // 6], fill=(230, 40, 40))
    made = {
        "JPEG, quality 40": Image.open(packed),
        "a logo": logo,
        "a tenth brighter": ImageEnhance.Brightness(image).enhance(1.1),
        "a tenth darker": ImageEnhance.Brightness(image).enhance(0.9),
        "three pixels cut off": image.crop([3, 3, width - 3, height - 3]).resize(image.size),
    }
    return {name: torch.from_numpy(np.array(each)) for name, each in made.items()}


def by_disturbance(system, frames, starts):
    """Mean PSNR from some priming frames, clean and disturbed: dict of dB."""
    some = evenly(starts, PRIMING)
    ways = [disturbed(picture) for picture in frames[some]]
    found = {"clean": measured(system, frames, some)}
    for name in ways[0]:
        given = torch.stack([way[name] for way in ways])
        found[name] = measured(system, frames, some, given)
    return {name: round(values.mean().item(), 2) for name, values in found.items()}


@torch.no_grad()
def figures(system, frames, starts):
    """The figures of the head of this file, but for processor time."""
    length = system.config.sequence_length
    made, copies = measured(system, frames, starts), copied(frames, starts, length)
    worst = made.mean(1).sort().values[: max(1, len(starts) // 20)]
    found = {
        "psnr": made.mean(),
        "copying": copies.mean(),
        "first": made[:, 0].mean(),
        "first_copying": copies[:, 0].mean(),
        "last": made[:, -1].mean(),
        "last_copying": copies[:, -1].mean(),
        "least_skill": (made - copies).mean(0).min(),
        "worst_twentieth": worst.mean(),
    }
    found = {name: round(value.item(), 2) for name, value in found.items()}
    return found | {"without_answer": round(without_answer(frames, starts, length), 3)}


@command
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("film")
    parser.add_argument("out", type=Path)
    parser.add_argument("--overrides", default="{}", help="JSON, beside the preset")
    parser.add_argument("--disturbed", action="store_true", help="also from disturbed priming frames")
    given = parser.parse_args()
    settings = {"device": "cpu", "run_dir": str(given.out)} | parse_object(given.overrides, "--overrides")
    cls, config, training = plan("mtld", "series", settings)
    dataset = open_data(given.film, config)
    began = time.process_time()
    fit(build(cls, config, dataset, training.seed), dataset, training)
    seconds = time.process_time() - began
    system = open_run(given.out, device="cpu")
    starts, _ = split_windows(dataset, system.config.sequence_length, restitution=True)
    found = {"processor_seconds": round(seconds)} | figures(system, dataset.frames, starts)
    if given.disturbed:
        with torch.no_grad():
            found |= {"disturbed": by_disturbance(system, dataset.frames, starts)}
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
