"""The GPU check, first half: is what the device computes right?

A section takes a `Bench` and returns rows, dicts; "right" says whether a row is as it must be.
"""

import contextlib
import itertools
import time
import warnings
from pathlib import Path

import torch
from gpu_cases import EVERY, Graded, differ
from torch import nn

from mtld_core.machine import graphs
from mtld_core.machine.heat import Sensor, uuid_of
from mtld_core.runtime import pick_precision, versions

REPEATED = ("mtld", "tinydreams", "weight_rnn", "tokenizer", "latent_actions")
STEPS = 6  # that a precision is tried for
CLOSE = 1e-4  # of fp32 gradients on two devices, as a share of their norm
HALF_CLOSE = 2e-2  # of gradients in half precision, compiled and not
TOO_LARGE, ROOM = ("tokenizer", "small", {"batch_size": 128}), 0.9e9  # a batch, and bytes that are too few
SMALLEST_SCALE = 256  # of fp16's losses, which begin with 512, and one step may be skipped
HOT = "tokenizer, at 21 degrees at most"
# a card that is as cool does not exist: its guard stops the run
COOL = {
    "max_temperature": 21.0,
    "resume_temperature": 20.0,
    "heat_poll_seconds": 0.2,
    "heat_rest_minutes": 0.01,
    "heat_patience_minutes": 0.05,
}


def environment(bench):
    """Versions, card, its sensor, its rates; whether autocast keeps gradients of weights used without one."""
    row = versions() | {"device": str(bench.device), "cudnn": torch.backends.cudnn.version()}
    dtype = pick_precision(bench.device)[0]
    row["TFLOP/s, fp32 product"] = bench.rate(torch.float32) / 1e12
    row[f"TFLOP/s, {str(dtype).removeprefix('torch.')} product"] = bench.rate(dtype) / 1e12
    row["LPIPS"] = "of true size" if "lpips_weights" in bench.perceptual else "left out: no package lpips"
    row["right"] = True
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        row |= {
            "card": properties.name,
            "cards": torch.cuda.device_count(),
            "capability": f"{properties.major}.{properties.minor}",
            "codes": " ".join(torch.cuda.get_arch_list()),
            "GB": properties.total_memory / 1e9,
            "data sheet, TFLOP/s": bench.peak and bench.peak / 1e12,
        }
        with contextlib.closing(Sensor(uuid_of(bench.device), bench.say)) as sensor:
            row |= sensor.read()._asdict()
        row["right"] = row["temperature"] is not None
    line = nn.Linear(4, 4, device=bench.device)
    with torch.autocast(bench.device.type, torch.bfloat16):
        with torch.no_grad():
            line(torch.ones(1, 4, device=bench.device))
        row["autocast's cache keeps gradients"] = line(torch.ones(1, 4, device=bench.device)).requires_grad
    return [row]


def precisions(bench):
    """Every system in each precision: finite, hardly a step skipped, a gradient for the same parameters."""
    whole = {}  # system -> how many gradients were not there in fp32, which comes first

    def row_of(case):
        name, precision = case
        steps = bench.steps(name, "tiny", precision=precision, kind=Graded)
        for seed in range(STEPS):
            logs = steps.update(seed)
        stepper = steps.stepper
        finite = all(value.isfinite().all().item() for value in logs.values())
        skipped = sum(count.item() for count in stepper.skipped.values())
        scales = [scaler.get_scale() for scaler in stepper.scalers.values() if scaler.is_enabled()]
        scaled = min(scales, default=SMALLEST_SCALE) >= SMALLEST_SCALE
        same = stepper.without == whole.setdefault(name, stepper.without)
        return {
            "finite": finite,
            "skipped": skipped,
            "without gradient": stepper.without,
            "least loss scale": min(scales, default=""),
            # each scale has to find its place
            "right": finite and skipped <= len(scales) and scaled and same,
        }

    return bench.rows("system", itertools.product(EVERY, ("fp32", "bf16", "fp16")), row_of)


def waits(bench):
    """Where a step makes the host wait for the device: nowhere."""

    def row_of(name):
        steps = bench.steps(name, "tiny")
        for _ in range(2):
            steps()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                steps.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        told = [each for each in caught if "synchroniz" in str(each.message)]
        places = sorted({f"{Path(each.filename).name}:{each.lineno}" for each in told})
        return {"waits": len(told), "at": " ".join(places), "right": not told}

    return bench.rows("system", EVERY, row_of)


def recovery(bench):
    """Work that cannot be recorded goes on as it is, and leaves no stream, memory or chance behind."""
    said = []

    def spoilt(inputs):
        if graphs.is_recording():
            inputs["x"].sum().item()
        return {"x": inputs["x"] + torch.rand_like(inputs["x"])}

    def row_of(case):
        x = torch.ones(2**22, device=bench.device)
        torch.cuda.empty_cache()
        before, stream = torch.cuda.memory_reserved(bench.device), torch.cuda.current_stream()
        cannot = graphs.Recorded(spoilt, bench.device, "spoilt work", said.append)
        can = graphs.Recorded(lambda inputs: {"x": inputs["x"] + 1}, bench.device, "sound work", said.append)
        for recorded in (cannot, can):
            for _ in range(graphs.WARM + 2):
                result = recorded({"x": x})["x"]
        sound = bool((result == 2).all()) and can.replay is not None and bool(cannot.why_not)
        torch.rand(4, device=bench.device)
        can.forget()
        del result
        torch.cuda.empty_cache()
        kept = torch.cuda.memory_reserved(bench.device) - before
        same = stream == torch.cuda.current_stream()
        return {"said": " ".join(said), "MB kept": kept / 1e6, "right": sound and same and kept < x.nbytes}

    return bench.rows("a failed capture", ["on purpose"], row_of)


def against_cpu(bench):
    """The gradients of a first step in fp32, without TF32, beside the CPU's."""

    def row_of(name):
        half = {"rl_every": 0} if name == "rl_v2v" else {}
        found = []
        for device in ("cpu", bench.device):
            steps = bench.steps(name, "tiny", half, "fp32", device, Graded)
            steps()
            found.append(steps.stepper.gradients)
        apart = differ(*found)
        return {"apart": apart, "right": apart < CLOSE}

    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
        return bench.rows("system", EVERY, row_of)


def memory(bench):
    """A batch that does not fit is computed in parts, with the loss of the whole one."""
    losses, parts = [], 1
    whole = torch.cuda.get_device_properties(bench.device).total_memory
    for room in (None, ROOM):
        torch.cuda.empty_cache()
        if room:
            share = (torch.cuda.memory_allocated(bench.device) + room) / whole
            torch.cuda.set_per_process_memory_fraction(share, bench.device)
        try:
            steps = bench.steps(*TOO_LARGE, "fp32")
            losses.append(steps()["mse"].item())
            parts = steps.stepper.splits["model"]
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
        del steps
    apart = abs(losses[1] - losses[0]) / losses[0]
    right = parts > 1 and apart < CLOSE
    return [{"loss": losses[0], "in parts": losses[1], "parts": parts, "right": right}]


def again(bench):
    """Two runs of a seed: equal to the bit where the kernels are deterministic; the usual ones are told."""

    def row_of(case):
        name, kernels = case
        exact = kernels == "deterministic"
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=exact):
            one, other = (_end(bench.steps(name, "tiny")) for _ in range(2))
        apart = (one - other).abs().max().item()
        return {"apart": apart, "right": not exact or apart == 0}

    return bench.rows("system", itertools.product(REPEATED, ("usual", "deterministic")), row_of)


def _end(steps):
    for seed in range(2 * STEPS):
        steps.update(seed)
    return torch.cat([parameter.detach().flatten() for parameter in steps.system.parameters()])


def whole_runs(bench):
    """`fit` trains, judges, saves and goes on; on a card, the heat guard stops and saves a run."""

    def row_of(name):
        if name == HOT:
            report = bench.run("tokenizer", "tiny", bench.folder / "hot", COOL, steps=1_000_000)
            right = report["status"] == "stopped"
        else:
            for steps in (10, 20):
                report = bench.run(name, "tiny", bench.folder / f"whole_{name}", steps=steps)
            right = report["status"] == "finished" and report["step"] == 20
        kept = ("status", "reason", "step", "precision", "peak_gpu_memory_mb")
        row = {each: report[each] for each in kept}
        return row | {"psnr": report["metrics"].get("psnr"), "right": right}

    cases = [*EVERY, HOT] if bench.device.type == "cuda" else EVERY
    return bench.rows("run", cases, row_of)


def compiled(bench):
    """compile: its first step's gradients beside eager ones, what a step takes, what compiling takes."""

    def row_of(name):
        found, row = [], {}
        for how in ("eager", "compiled"):
            steps = bench.steps(name, "small", kind=Graded)
            if how == "compiled":
                for part in steps.system.to_compile():
                    part.compile()
            began = time.perf_counter()
            steps()
            row[f"{how}, first step, s"] = time.perf_counter() - began
            row[f"{how}, ms"] = bench.median_ms(steps)
            found.append(steps.stepper.gradients)
        apart = differ(*found)
        return row | {"apart": apart, "right": apart < HALF_CLOSE}

    return bench.rows("system", ("dynamics", "mtld", "tinydreams"), row_of)
