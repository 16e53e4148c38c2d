"""What a run says about itself: config.json and the manifests, report.json, and one line for a person."""

import torch

from mtld_core.checkpoint import SCHEMA
from mtld_core.config import to_dict
from mtld_core.runtime import peak_memory_mb, versions


def about(system, config, dataset):
    """What a run is, whatever has happened in it: config.json, and "config" in each checkpoint's manifest."""
    return {
        "schema": SCHEMA,
        "system": system.name,
        "preset": config.preset,
        "config": to_dict(system.config),
        "training": to_dict(config),
        "dataset": dataset.describe(),
    }


def report(run, status, reason):
    """What report.json holds, of a `Training`: what ran, on what, how long, and the newest figures."""
    config, device = run.config, run.device
    on_gpu = device.type == "cuda"
    speed = run.step / run.train_seconds if run.train_seconds else 0.0
    return {
        "schema": 1,
        "system": run.system.name,
        "preset": config.preset,
        "run_dir": str(run.run_dir),
        "status": status,
        "reason": reason,
        "given_up": run.given_up and status != "finished",
        "step": run.step,
        "steps_total": run.schedule.last_step(run.step),
        "steps_per_second": speed,
        "frames_per_second": speed * config.batch_size * run.needs.window,
        "train_seconds": run.train_seconds,
        "paused_seconds": run.paused_seconds,
        "heat": run.heat.facts(),
        "threads": run.threads.facts(),
        "wall_seconds": run.wall_seconds,
        "peak_memory_mb": peak_memory_mb(),
        "peak_gpu_memory_mb": torch.cuda.max_memory_allocated(device) / 1e6 if on_gpu else None,
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "precision": run.precision,
        "parameters": run.parameters,
        "seed": config.seed,
        "restitution": config.restitution,
        "dataset": run.dataset.describe(),
        "versions": versions(),
        "judged_at_step": run.judged_at,
        "alarms": run.alarms.present,
        "metrics": run.metrics,
    }


def summary(metrics):
    """The figures that matter most, in words."""
    if not metrics:
        return "not judged yet"
    if metrics["skill_db"] is None:
        return f"psnr {metrics['psnr']:.2f} dB (reconstruction)"
    copied, skill = metrics["baseline_copy_psnr"], metrics["skill_db"]
    return f"psnr {metrics['psnr']:.2f} dB (copying the last frame: {copied:.2f}), skill {skill:+.2f} dB"
