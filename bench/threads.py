"""Does `threads="auto"` find the fastest number of threads, alone and beside other programs?

    python bench/threads.py [--rounds 3] [--seconds 6]

Trains each system with every fixed number and with "auto" in turn, as many steps each time, beside 0, 1 and 2
programs that never rest; medians of all rounds, and "auto" over the best fixed number. A first look at the
machine is part of its time.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import time

import torch
from measure import seconds
from steps import CASES, Steps

from mtld_core.machine.threads import Threads
from mtld_core.runtime import command, warm_memory

TRIED = {name: CASES[name] for name in ("weight_rnn `small`", "mtld `demo`", "tinydreams `small`")}
BUSY = "while True: pass"


@contextlib.contextmanager
def busy(count):
    programs = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def seconds_of(step, count, setting):
    """Wall-clock seconds of `count` steps."""
    began = time.perf_counter()
    with Threads(setting, say=lambda line: None) as threads:
        for _ in range(count):
            threads.see(seconds(step))
    return time.perf_counter() - began


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a run on the quiet machine")
    given = parser.parse_args()
    most = torch.get_num_threads()
    settings = [*range(1, most + 1), "auto"]
    names = [f"{setting} thread(s)" for setting in settings[:-1]]
    print(f"torch {torch.__version__}, {most} threads at most; seconds, medians of {given.rounds}")
    print(f"| steps | beside | {' | '.join(names)} | auto | auto over the best |")
    print("|" + "---|" * (len(settings) + 3))
    with warm_memory():
        for name, case in TRIED.items():
            step = Steps(*case)
            for _ in range(3):
                step()
            steps = max(20, round(given.seconds / statistics.median(seconds(step) for _ in range(5))))
            for programs in (0, 1, 2):
                found = {setting: [] for setting in settings}
                with busy(programs):
                    for _ in range(given.rounds):
                        for setting in settings:
                            found[setting].append(seconds_of(step, steps, setting))
                medians = [statistics.median(seconds) for seconds in found.values()]
                cells = " | ".join(f"{median:.1f}" for median in medians)
                ratio = medians[-1] / min(medians[:-1])
                print(f"| {name}, {steps} steps | {programs} busy | {cells} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
