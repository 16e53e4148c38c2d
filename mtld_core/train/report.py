"""What a run says about itself: its manifests and report.json, warnings, and one line for a person."""

import platform
import time

import psutil
import torch

from mtld_core.config import to_dict
from mtld_core.judge.life import falls_apart
from mtld_core.judge.words import LEAST_GAP, verdict
from mtld_core.machine import backends
from mtld_core.runs.checkpoint import SCHEMA
from mtld_core.runtime import core_count, name_of, peak_memory_mb, versions
from mtld_core.train.schedule import clock

EARLY = 500  # steps: before that little has begun to vary, which is no collapse


def about(system, config, dataset):
    """What a run is, whatever has happened in it: config.json, and "config" in each checkpoint's manifest."""
    return {
        "schema": SCHEMA,
        "system": system.name,
        "preset": config.preset,
        "config": to_dict(system.config),
        "training": to_dict(config),
        "dataset": dataset.describe() | {"digest": dataset.digest()},
    }


def report(run, status, reason):
    """What report.json holds, of a `Training`: what ran, on what, how long, and the newest figures."""
    config, device = run.config, run.device
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
        "processes": run.group.size,
        "wall_seconds": run.wall_seconds,
        "peak_memory_mb": peak_memory_mb(),
        "peak_gpu_memory_mb": peak_gpu_memory_mb(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": run.precision,
        "precision_judged": name_of(run.system.precision),
        "backends": backends.chosen(device, config, run.system),
        "graphs": {"replayed_steps": run.do_step.replays, "why_not": run.do_step.why_not},
        "parameters": run.parameters,
        "seed": config.seed,
        "restitution": config.restitution,
        "dataset": run.dataset.describe(),
        "versions": versions(),
        # without its name, which reports that are given away would tell
        "machine": f"{platform.system()} {platform.machine()}, {core_count()} core(s), "
        f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "verdict": verdict(run.metrics, run.better),
        "judged_at_step": run.judged_at,
        "alarms": run.alarms.present,
        "metrics": run.metrics,
    }


def facts(report):
    """What a page says of a run beside its figures: a dict of words. report: as report.json has it."""
    data = report["dataset"]
    height, width = data["size"]
    return {
        "ended": f"{report['status']} at step {report['step']}: {report['reason']}",
        "date": report["date"],
        "trained": f"{clock(report['train_seconds'])} of {clock(report['wall_seconds'])} in all",
        "system": f"{report['system']}, preset {report['preset'] or 'none'}, seed {report['seed']}, "
        f"{report['parameters']:,} parameters",
        "machine": f"{report['device']} in {report['precision']}; {report['machine']}",
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        "data": f"{data['path']}: {data['frames']} frames of {height}x{width} in {data['arcs']} arc(s)",
        "run folder": report["run_dir"],
    }


def peak_gpu_memory_mb(device):
    """The most that torch has held on a GPU so far, in MB (10^6 bytes); None for a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None


def peak_gigabytes(device):
    """The most memory that was held so far, a GPU's where it is one, in GB (10^9 bytes); 0 if not known."""
    return (peak_gpu_memory_mb(device) or peak_memory_mb() or 0) / 1000


class Alarms:
    """Warns of what looks like a collapse, when it appears. say: takes the lines."""

    def __init__(self, system, say):
        self.system, self.say = system, say
        self.found = {}  # "log" or "judgement" -> its latest lines

    def look(self, at, figures, step=EARLY):
        """Take a log line's values or an evaluation's figures: a dict, of whose floats systems are told.

        at: "log" or "judgement", whose earlier lines these replace.
        """
        if step < EARLY:
            return
        lines = falls_apart(figures)
        figures = {name: value for name, value in figures.items() if isinstance(value, float)}
        lines += self.system.alarms(figures)
        if figures.get("action_shuffle_gap_db", LEAST_GAP) < LEAST_GAP:
            lines.append(
                f"the actions do not matter: those of other windows do as well, within {LEAST_GAP} dB"
            )
        for line in lines:
            if line not in self.present:
                self.say(f"warning: {line}")
        self.found[at] = lines

    @property
    def present(self):
        """The lines that warn now, each once."""
        return list(dict.fromkeys(line for lines in self.found.values() for line in lines))
