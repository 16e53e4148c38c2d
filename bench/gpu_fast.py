"""The GPU check, second half: how fast is it?

A section takes a `Bench` and returns rows, dicts; "right" says whether a row is as it must be, where anything
must be so.
"""

import dataclasses
import time

import torch
from gpu_cases import EVERY, NotHere, furthest
from measure import Work
from rollouts import stream

from mtld_core.data import Batches
from mtld_core.frames import to_uint8
from mtld_core.generate.rollouts import stream as generated
from mtld_core.systems.base import Samples, Translates

STEPPED = [(name, preset) for preset in ("small", "gpu") for name in EVERY] + [("mtld", "original")]
DRAWN = [(name, "small") for name in EVERY if name != "tokenizer"] + [("dynamics", "codes")]
PROFILED = 4  # steps


def profile(bench):
    """Kernels of a step, what they take, and the share of the time in which the device works."""

    def row_of(case):
        steps = bench.steps(*case)
        taken = bench.median_ms(steps)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
            for _ in range(PROFILED):
                steps.update()
            bench.wait()
        kernels = [each for each in found.events() if each.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(each.device_time for each in kernels) / PROFILED / 1000
        longest = max(found.key_averages(), key=lambda each: each.self_device_time_total, default=None)
        return {
            "kernels": len(kernels) // PROFILED,
            "their ms": busy,
            "ms": taken,
            "busy": busy / taken,
            "longest": longest and longest.key[:60],
        }

    return bench.rows("step of", [(name, "small") for name in EVERY], row_of)


def speed(bench):
    """What a step takes, eager, beside the card's peak by its data sheet and its own rate of products."""

    def row_of(case):
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(bench.device)
        steps = bench.steps(*case)
        taken = bench.median_ms(steps, rounds=8)
        with Work() as work:
            steps()
        rate = 1000 * work.flop / taken
        side, batch = steps.system.config.height, steps.training.batch_size
        row = {
            "frames": f"{side}x{side}",
            "batch": batch,
            "parts": max(steps.stepper.splits.values()),
            "precision": str(steps.stepper.dtype).removeprefix("torch."),
            "ms": taken,
            "samples/s": 1000 * batch / taken,
            "GFLOP": work.flop / 1e9,
            "share of the data sheet": rate / bench.peak if bench.peak else "",
            "share of a product's rate": rate / bench.rate(steps.stepper.dtype),
        }
        if bench.device.type == "cuda":
            row["GB"] = torch.cuda.max_memory_allocated(bench.device) / 1e9
        return row

    return bench.rows("step of", STEPPED, row_of)


def graphs(bench):
    """A run whose steps are replayed as CUDA graphs beside one that launches each kernel.

    Right where no run says that it could not be recorded. A system whose steps differ is launched both times.
    """

    def row_of(case):
        name, preset = case
        found = {}
        for how in ("off", "auto"):
            folder = bench.folder / f"graphs_{how}_{name}"
            found[how] = bench.timed_run(name, preset, folder, {"graphs": how})
        (eager, weights, _), (replayed, others, said) = found["off"], found["auto"]
        row = {"eager, ms": eager, "graph, ms": replayed, "times": eager / replayed}
        row["weights apart"] = furthest(weights, others)
        row["said"] = " ".join(line for line in said if "recorded" in line)
        return row | {"right": not row["said"]}

    return bench.rows("step of", [(name, "small") for name in EVERY], row_of)


def rollouts(bench):
    """What a frame of one stream takes, fetched to the host: step by step, and as `generate` draws it."""

    def row_of(case):
        steps = bench.steps(*case)
        system = steps.system.eval()
        context = steps.batches.next()[0]["frames"][:1, : system.needs().context]
        with torch.inference_mode():
            draw = stream(system, context)
            taken = bench.median_ms(lambda: draw().cpu(), rounds=40, warm=20)
        row = {"ms": taken, "frames/s": 1000 / taken}
        if not isinstance(system, Translates):
            row["generated, frames/s"] = 1000 / _generated_ms(system, context)
        return row

    return bench.rows("frames of", DRAWN, row_of)


def _generated_ms(system, context, warm=20, count=80):
    """ms a frame that `generate` draws, after the first ones."""
    actions = [0] * (warm + count) if system.action_space else None
    begin = None if isinstance(system, Samples) else to_uint8(context[0])
    frames = generated(system, begin, warm + count, actions)
    for _ in range(warm):
        next(frames)
    began = time.perf_counter()
    for _ in range(count):
        next(frames)
    return 1000 * (time.perf_counter() - began) / count


def data_path(bench):
    """What a batch of 64 windows of 16 frames takes, from frames on the device and from the host's memory."""
    steps = bench.steps("mtld", "small", {"batch_size": 64, "perceptual": "none"})
    batches = {"the device": steps.batches, "the host": _from_host(bench, steps)}
    return bench.rows(
        "batches from", batches, lambda where: {"ms": bench.median_ms(batches[where].next, rounds=20)}
    )


def _from_host(bench, steps):
    own = steps.batches.streams[0]
    dataset = own.dataset
    host = dataclasses.replace(dataset, frames=dataset.frames.cpu(), actions=dataset.actions.cpu())
    return Batches(host, [own.starts], own.length, own.batch_size, 0, device=bench.device)


def processes(bench):
    """A run in two processes, a card each, beside one in one process: ms a step, how far the weights part."""
    if torch.cuda.device_count() < 2:
        raise NotHere("one card")

    def row_of(case):
        one, weights = bench.launched_run(*case, bench.folder / f"one_{case[0]}", 1)
        two, others = bench.launched_run(*case, bench.folder / f"two_{case[0]}", 2)
        row = {"one card, ms": one, "two, ms": two, "times": one / two}
        return row | {"weights apart": furthest(weights, others)}

    return bench.rows("step of", [("mtld", "gpu"), ("dynamics", "gpu")], row_of)
