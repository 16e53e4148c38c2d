"""How fast every system draws frames, beside its floor, and whether a frame costs the same for ever.

    python bench/rollouts.py [--frames 1000] [--plot docs/rollout_times.png]

One stream of each system's presets, untrained: what a frame costs does not depend on what was learned. The
floors are those of bench/steps.py. The plot has the time of each frame over its number.
"""

import argparse
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import Work, machine, print_table, seconds
from steps import CASES, Steps

from mtld_core.frames import to_uint8
from mtld_core.runtime import command, warm_memory
from mtld_core.systems.base import Samples, Translates

DRAWN = (
    "mtld `demo`",
    "mtld `small`",
    "tinydreams `small`",
    "latent_actions `small`",
    "dynamics `small`",
    "dynamics `codes`",
    "weight_rnn `small`",
    "rl_v2v `small`, no RL half",
)
WARM, COUNTED = 20, 100  # frames that do not count; frames at each end that the medians are of
SMOOTHED = 25  # frames that a point of the plot is the median of


def stream(system, context):
    """A function that draws the next frame of one endless rollout, or translates the next frame of X."""
    zero = None
    if system.action_space is not None:
        one = isinstance(system.action_space, int)
        zero = torch.zeros(1, dtype=torch.int64) if one else torch.tensor([system.action_space[0]])
        zero = zero.to(system.device)
    if isinstance(system, Translates):
        state = [None]

        def draw():
            made, state[0] = system.translate(context[:, :1], "x_to_y", state[0])
            return to_uint8(made)

    else:
        state = [system.start(None if isinstance(system, Samples) else context)]

        def draw():
            state[0], frame = system.step(state[0], zero)
            return to_uint8(frame)

    return torch.inference_mode()(draw)


def rows_of(about, frames=1000, seen=lambda name, times: None):
    """A row each, a dict. about: `machine()`, whose rates are the floors. frames: of a rollout.

    seen: is told the seconds of each of its frames.
    """
    rows = []
    for name in DRAWN:
        steps = Steps(*CASES[name])
        system = steps.system.eval()
        window = steps.batches.next()[0]["frames"]
        with warm_memory(), torch.inference_mode():
            draw = stream(system, window[:1, : system.needs().context])
            for _ in range(WARM):
                draw()
            with Work() as work:
                draw()
            memory = psutil.Process().memory_info().rss
            times = [seconds(draw) for _ in range(frames)]
            grown = psutil.Process().memory_info().rss - memory
        seen(name, times)
        taken = statistics.median(times)
        arithmetic = work.flop / about["gflops"] / 1e9
        rows.append(
            {
                "frames of": name,
                "frames/s": 1 / taken,
                "GFLOP a frame": work.flop / 1e9,
                "kernels": work.kernels,
                "ms": 1000 * taken,
                "at the matrix rate, ms": 1000 * arithmetic,
                "with memory, ms": 1000 * work.floor(about),
                "first 100, ms": 1000 * statistics.median(times[:COUNTED]),
                "last 100, ms": 1000 * statistics.median(times[-COUNTED:]),
                "memory grown, MB": grown / 1e6,
            }
        )
    return rows


def plot(times, path):
    """Save a plot of the time of each frame over its number. times: name -> seconds of each frame."""
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for name, taken in times.items():
        parts = [taken[i : i + SMOOTHED] for i in range(0, len(taken), SMOOTHED)]
        middle = [WARM + SMOOTHED * (i + 0.5) for i in range(len(parts))]
        axes.plot(middle, [1000 * statistics.median(part) for part in parts], label=name.replace("`", ""))
    axes.set(xlabel="frame of the rollout", ylabel="ms a frame", yscale="log")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1000, help="of each rollout")
    parser.add_argument("--plot", type=Path, help="a picture of the time of each frame")
    given = parser.parse_args()
    times = {}
    print_table(rows_of(machine(), given.frames, times.__setitem__))
    if given.plot:
        plot(times, given.plot)


if __name__ == "__main__":
    sys.exit(main())
