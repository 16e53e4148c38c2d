"""How fast every system draws frames, beside its floor, and whether a frame costs the same for ever.

    python bench/rollouts.py [--frames 1000]

One stream of each system's presets, untrained: what a frame costs does not depend on what was learned. The
floors are those of bench/steps.py.
"""

import argparse
import statistics
import sys
from pathlib import Path

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


def rows_of(about, frames=1000):
    """A row each, a dict. about: `machine()`, whose rates are the floors. frames: of a rollout."""
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


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1000, help="of each rollout")
    given = parser.parse_args()
    print_table(rows_of(machine(), given.frames))


if __name__ == "__main__":
    sys.exit(main())
