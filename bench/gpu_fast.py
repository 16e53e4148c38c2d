"""The GPU check, second half: how fast is it?

A section takes a `Bench` and returns rows, dicts with the same names; "right" says whether a row is as it
must be, where anything must be so.
"""

import dataclasses

import torch
from gpu_cases import EVERY, NotHere, furthest
from measure import Work
from rollouts import stream

from mtld_core.data import Batches

STEPPED = [(name, preset) for preset in ("small", "gpu") for name in EVERY] + [("mtld", "original")]
DRAWN = [(name, "small") for name in EVERY if name != "tokenizer"] + [("dynamics", "codes")]
PROFILED = 4  # steps


def profile(bench):
    """Kernels of a step, what they take, and the share of the time in which the device works."""
    rows = []
    for name in EVERY:
        steps = bench.steps(name, "small")
        for _ in range(3):
            steps()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        taken = bench.median_ms(steps)
        with torch.profiler.profile(activities=activities) as found:
            for _ in range(PROFILED):
                steps.update()
            bench.wait()
        kernels = [each for each in found.events() if each.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(each.device_time for each in kernels) / PROFILED / 1000
        longest = max(found.key_averages(), key=lambda each: each.self_device_time_total, default=None)
        rows.append(
            {
                "step of": f"{name} `small`",
                "kernels": len(kernels) // PROFILED,
                "their ms": busy,
                "ms": taken,
                "busy": busy / taken,
                "longest": longest and longest.key[:60],
            }
        )
    return rows


def speed(bench):
    """What a step takes, eager, beside the card's peak by its data sheet and its own rate of products."""
    rows = []
    for name, preset in STEPPED:
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(bench.device)
        steps = bench.steps(name, preset)
        taken = bench.median_ms(steps, rounds=8)
        parts = max(steps.stepper.splits.values())
        with Work() as work:
            steps()
        seconds = taken / 1000
        rate = bench.rate(steps.stepper.dtype)
        side, batch = steps.system.config.height, steps.training.batch_size
        row = {
            "step of": f"{name} `{preset}`",
            "frames": f"{side}x{side}",
            "batch": batch,
            "parts": parts,
            "precision": str(steps.stepper.dtype).removeprefix("torch."),
            "ms": taken,
            "samples/s": batch / seconds,
            "GFLOP": work.flop / 1e9,
            "share of the data sheet": work.flop / seconds / bench.peak if bench.peak else "",
            "share of a product's rate": work.flop / seconds / rate,
        }
        if bench.device.type == "cuda":
            row["GB"] = torch.cuda.max_memory_allocated(bench.device) / 1e9
        rows.append(row)
        bench.say(f"   {row}")
        del steps
    return rows


def graphs(bench):
    """A run whose steps are replayed as CUDA graphs beside one that launches each kernel."""
    rows = []
    for name in EVERY:
        found = {}
        for how in ("off", "on"):
            folder = bench.folder / f"graphs_{how}_{name}"
            found[how] = bench.timed_run(name, "small", folder, {"graphs": how})
        (eager, weights), (replayed, others) = found["off"], found["on"]
        row = {"step of": f"{name} `small`", "eager, ms": eager, "graph, ms": replayed}
        row |= {"times": eager / replayed, "weights apart": furthest(weights, others)}
        rows.append(row)
        bench.say(f"   {row}")
    return rows


def rollouts(bench):
    """What a frame of one endless stream takes, fetched to the host; the median and the slowest of ten."""
    rows = []
    for name, preset in DRAWN:
        steps = bench.steps(name, preset)
        system = steps.system.eval()
        window = steps.batches.next()[0]["frames"]
        with torch.inference_mode():
            draw = stream(system, window[:1, : system.needs().context])
            taken = bench.median_ms(lambda draw=draw: draw().cpu(), rounds=40, warm=20)
        rows.append({"frames of": f"{name} `{preset}`", "ms": taken, "frames/s": 1000 / taken})
    return rows


def data_path(bench):
    """What a batch of 64 windows of 16 frames takes, from frames on the device and from the host's memory."""
    rows = []
    steps = bench.steps("mtld", "small", {"batch_size": 64, "perceptual": "none"})
    batches = {"the device": steps.batches, "the host": _from_host(bench, steps)}
    for where, stream_of in batches.items():
        taken = bench.median_ms(stream_of.next, rounds=20)
        rows.append({"batches from": where, "ms": taken})
    return rows


def _from_host(bench, steps):
    own = steps.batches.streams[0]
    dataset = own.dataset
    host = dataclasses.replace(dataset, frames=dataset.frames.cpu(), actions=dataset.actions.cpu())
    return Batches(host, [own.starts], own.length, own.batch_size, 0, device=bench.device)


def processes(bench):
    """A run in two processes, a card each, beside one in one process: ms a step, how far the weights part."""
    if torch.cuda.device_count() < 2:
        raise NotHere("one card")
    rows = []
    for name in ("mtld", "dynamics"):
        one, weights = bench.launched_run(name, "gpu", bench.folder / f"one_{name}", 1)
        two, others = bench.launched_run(name, "gpu", bench.folder / f"two_{name}", 2)
        row = {"step of": f"{name} `gpu`", "one card, ms": one, "two, ms": two, "times": one / two}
        rows.append(row | {"weights apart": furthest(weights, others)})
    return rows
