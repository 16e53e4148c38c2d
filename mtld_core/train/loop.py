"""The loop: a run in progress, from its first step of this session to its report."""

import contextlib
import copy
import time

import torch

from mtld_core import media
from mtld_core.chance import seed_of
from mtld_core.config import RunGivenUp
from mtld_core.files import atomic_path, write_json
from mtld_core.judge.task import Task, best_by
from mtld_core.judge.windows import check_stages
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.runs.folder import (
    BEST,
    CONFIG,
    JUDGEMENT,
    PREVIEWS,
    REPORT,
    append_log,
    checkpoint_name,
    read_pointer,
    rewind,
)
from mtld_core.runs.resume import check_origin, checkpoint_to_resume
from mtld_core.runtime import (
    peak_memory_mb,
    pick_device,
    pick_precision,
)
from mtld_core.systems.base import to_channels_last
from mtld_core.train.controls import Progress
from mtld_core.train.heat import Heat
from mtld_core.train.plots import draw_judgement
from mtld_core.train.report import Alarms, about, report, summary
from mtld_core.train.schedule import Schedule
from mtld_core.train.stepper import Stepper

SECONDS_BETWEEN_LOOKS = 0.1  # while paused
PATIENCE = 20  # updates of a phase in a row that were not finite, after which the run is given up
FEW, MORE = 1 / 16, 1 / 8  # of all windows: enough to see how long judging takes
MOST_TO_EXPECT = 0.03  # of the budget, to judge each of those
EARLY_STEPS, SECONDS_BETWEEN_READINGS = (
    4,
    5,
)  # when a GPU is waited for, besides at log lines, to see how long a step takes
BYTES_A_SECOND = 60e6  # that a checkpoint is written and checked at, until one was


# ---- the loop


class GivenUp(Exception):
    """Judging on the way was given up, because the run is to end."""


class Training:
    """A run in progress: what `fit` holds while it trains. `run()` is the loop."""

    def __init__(self, system, dataset, config, run_dir, controls, threads, began):
        self.config, self.run_dir, self.controls, self.threads = config, run_dir, controls, threads
        self.device = pick_device(config.device, controls.say)
        self.dtype, why = pick_precision(self.device, config.precision)
        self.needs = system.needs()
        self.task = Task(system, dataset.to(self.device), config, self.device, controls.say)
        self.dataset, self.batches, self.judge = self.task.dataset, self.task.batches, self.task.judge
        self.system = system.to(self.device).train()
        if config.channels_last:
            to_channels_last(system)
        self.optimizers = system.optimizers()
        self.learning_rates = {
            name: [group["lr"] for group in o.param_groups] for name, o in self.optimizers.items()
        }
        self.ema = copy.deepcopy(system).eval().requires_grad_(False) if config.ema_decay else None
        self.stepper = Stepper(
            self.optimizers, self.device, self.dtype, config.accumulate, config.clip_norm, controls.say
        )
        self.schedule = Schedule(config, self.batches.steps_per_epoch, controls.stop, began)
        self.heat = Heat(config)
        self.step = 0
        self.lost = dict.fromkeys(self.optimizers, 0)  # updates of each phase in a row that were not finite
        self.train_seconds = self.paused_seconds = self.earlier_wall_seconds = 0.0
        self.saved, self.metrics, self.judged_at = (
            None,
            {},
            None,
        )  # the checkpoint of the present state, the newest figures
        self.previewed_at = None
        self.alarms = Alarms(system, controls.say)
        system.setup_training(run_dir)
        self._resume_or_begin()
        self.session_step, self.session_seconds = self.step, self.train_seconds  # where this session began
        self.unread_steps, self.unread_seconds = 0, 0.0  # since the time of a step was last read
        if config.compile:
            for part in system.to_compile():
                part.compile()
        rewind(run_dir, self.step)
        write_json(run_dir / CONFIG, self._about())
        say = controls.say
        say(
            f"{system.name}: {self.parameters / 1e6:.1f} M parameters on {self.device} in {self.precision} "
            f"({why})"
        )
        judged = (
            "the same ones (restitution)" if config.restitution else f"{len(self.judge.starts)} held-out ones"
        )
        say(f"{self.batches.windows} windows of {self.needs.window} frames to learn, judged on {judged}")
        say(f"run folder {run_dir}" + (f", going on at step {self.step}" if self.step else ""))

    def run(self):
        config = self.config
        self.progress = Progress(self.step, config.interactive, self.controls.say)
        self.saved_at = time.monotonic()
        while (end := self._attend()) is None:
            # ---- every step: train
            began = time.monotonic()
            logs = self._train_step()
            self.step += 1
            log = self.step % config.log_every_steps == 0
            if log:
                values = self._fetch(logs)  # waits for the device
            whole = log or self._wait_to_read()
            took = time.monotonic() - began
            self.train_seconds += took
            self._read_time(took, whole)
            if log:
                self._log(values)
            if self.schedule.lacks_expectations:
                self._expect_the_end()

            # ---- once in a while: save, preview, judge
            late = (
                config.save_every_minutes
                and time.monotonic() - self.saved_at > 60 * config.save_every_minutes
            )
            if _due(self.step, config.save_every_steps) or late:
                self._save()
            if _due(self.step, config.preview_every_steps) and self.schedule.has_room_for("preview"):
                self._preview()
            if _due(self.step, config.eval_every_steps) and self.schedule.has_room_for("judging"):
                self._evaluate(self._attend_judging)

        # ---- once: the end; first what must not be lost
        self.progress.close(self.step)
        self.controls.doing = "saving and judging"
        self.controls.say("saving and judging ...")
        if end[0] == "finished" and self.step == self.session_step and not self.schedule.total:
            end = "stopped", "the time budget was spent before the first step; give it more minutes"
        if end[0] == "finished" and not self.schedule.total:
            self.schedule.finish()
            self.saved = None  # what may have been saved at this step does not know that it is the last
        self._save()
        self.controls.ending = True
        if self.previewed_at != self.step:
            self._preview()
        if self.judged_at != self.step and not self.heat.emergency:  # judging is as hard work as training
            stopped = self.controls.stop.is_set()  # a stop that comes now gives it up
            self._evaluate(lambda: self._give_up_if(self.controls.stop.is_set() and not stopped))
        written = self.write_report(*end)
        self.controls.say(f"{end[0]} at step {self.step} ({end[1]}): {summary(self.metrics)}")
        return written

    def _train_step(self):
        torch.manual_seed(
            seed_of(self.config.seed, "step", self.step)
        )  # whatever draws unkeyed: the same after a resume
        factor = self.schedule.learning_rate(self.step)
        for name, rates in self.learning_rates.items():
            for group, rate in zip(self.optimizers[name].param_groups, rates, strict=True):
                group["lr"] = rate * factor
        logs = self.system.training_step(self.batches.next(), self.stepper)
        if self.ema is not None:
            self._average()
        return logs

    @torch.no_grad()
    def _average(self):
        decay = min(
            self.config.ema_decay, (1 + self.step) / (10 + self.step)
        )  # a short memory while much still moves
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.system.parameters()), 1 - decay)
        for averaged, buffer in zip(self.ema.buffers(), self.system.buffers(), strict=True):
            averaged.copy_(buffer)

    def _attend(self, doing="training"):
        """Save if asked to, wait while a person or the heat wants it; None to go on `doing`, else (status,
        reason) to end.
        """
        controls, began, waited = self.controls, time.monotonic(), False
        controls.step, controls.total = self.step, self.schedule.last_step(self.step)
        while True:
            if controls.save.is_set():
                self._save()
                controls.save.clear()
            while self.heat.news:
                controls.say(self.heat.news.popleft())
            end = self._reason_to_end()
            why = "paused" if controls.pause.is_set() else self.heat.resting
            if end or not why:
                break
            controls.doing, waited = why, True
            controls.stop.wait(SECONDS_BETWEEN_LOOKS)
        if waited:
            self.paused_seconds += time.monotonic() - began
        controls.doing = doing
        return end

    def _attend_judging(self):
        self._attend("judging")
        self._give_up_if(
            self.controls.stop.is_set() or self.heat.emergency
        )  # the end judges once more, or must not

    def _give_up_if(self, over):
        if over:
            raise GivenUp

    def _reason_to_end(self):
        if too_hot := self.heat.reason_to_end(time.monotonic()):
            return "stopped", too_hot
        return self.schedule.reason_to_end(self.step)

    # ---- time

    def _wait_to_read(self):
        """Whether this step is over, so that its time can be read. A GPU is waited for at first, and then
        every few seconds.
        """
        if self.device.type == "cuda":
            early = self.step - self.session_step <= EARLY_STEPS
            if not early and self.unread_seconds < SECONDS_BETWEEN_READINGS:
                return False
            torch.cuda.synchronize(self.device)
        return True

    def _read_time(self, took, whole):
        """After each step: it took so many seconds. whole: that is all of it, and not only its start on a
        GPU.
        """
        self.unread_steps += 1
        self.unread_seconds += took
        if whole:
            seconds = self.unread_seconds / self.unread_steps
            self.schedule.read(seconds)
            self.threads.see(seconds)
            self.unread_steps, self.unread_seconds = 0, 0.0
        self.schedule.advance()

    def _expect_the_end(self):
        """Estimate how long the last save, preview and judging will take, from few windows, so that time is
        kept for them.
        """
        schedule, judged = self.schedule, self._judged()
        stored = 4 * sum(
            tensor.nbytes for tensor in self.system.state_dict().values()
        )  # weights, average, two moments
        schedule.expect("saving", stored / BYTES_A_SECOND)
        self.controls.doing = "judging"
        with self.threads.settled():
            self._judge_few(FEW)  # fills caches and loads networks
            share, seconds, whole = self._judge_few(FEW)
            expected = seconds / share
            if whole:  # what it costs to begin with tells from what each window costs
                larger, longer, whole = self._judge_few(MORE)
                if whole and larger > share:
                    expected = max(longer, seconds + (longer - seconds) * (1 - share) / (larger - share))
            schedule.expect("judging", expected)
            began = time.monotonic()
            self.task.preview(judged)
            schedule.expect("preview", time.monotonic() - began)
        self.system.train()

    def _judge_few(self, share):
        """(share of the windows that was judged, seconds that it took, whether it was done or took too
        long).
        """
        few, share = self.task.few(share)
        began = time.monotonic()
        until = began + MOST_TO_EXPECT * self.schedule.budget
        try:
            few.figures(
                self._judged(),
                lambda: self._give_up_if(self.controls.stop.is_set() or time.monotonic() > until),
            )
        except GivenUp:
            return share, time.monotonic() - began, False
        return share, time.monotonic() - began, True

    @contextlib.contextmanager
    def _timed(self, work):
        began, paused = time.monotonic(), self.paused_seconds
        with self.threads.settled():
            yield
        self.schedule.took(work, time.monotonic() - began - (self.paused_seconds - paused))

    # ---- beginning

    def _resume_or_begin(self):
        folder, manifest = checkpoint_to_resume(self.run_dir, self.config.resume, self.controls.say)
        if folder is None:
            check_stages(self.system, self.dataset, self.config)
            self.system.prepare(*self.task.samples)
            if self.ema is not None:
                self.ema.load_state_dict(self.system.state_dict())
            return
        check_origin(folder, manifest["config"], self._about(), self.run_dir)
        checkpoints.load_state_dict(self.system, checkpoints.load_weights(folder, ema=False), folder)
        if self.ema is not None:
            self.ema.load_state_dict(checkpoints.load_weights(folder))
        state = checkpoints.load_train_state(folder)
        self.step, self.train_seconds, self.paused_seconds = (
            state["step"],
            state["train_seconds"],
            state["paused_seconds"],
        )
        self.earlier_wall_seconds = state["wall_seconds"]
        self.schedule.resume(self.step, state.get("schedule"), state.get("total", 0))
        self.batches.load_state(state["batches"])
        self.stepper.load_state(state["stepper"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            for (
                parameter,
                moments,
            ) in optimizer.state.items():  # the fused kernel pairs raw memory: lay it out alike
                moments |= {
                    k: torch.empty_like(parameter).copy_(v)
                    for k, v in moments.items()
                    if v.shape == parameter.shape
                }
        self.system.load_extra_state(state["extra"], folder.parent.parent)
        if folder.parent.parent == self.run_dir:
            self.saved = checkpoint_name(self.step)

    # ---- once in a while

    def _fetch(self, logs):
        skipped = {f"skipped_{name}": count for name, count in self.stepper.skipped.items()}
        values = torch.stack([value.float() for value in (logs | skipped).values()]).tolist()
        for count in skipped.values():
            count.zero_()
        return dict(zip(logs | skipped, values, strict=True))

    def _log(self, values):
        steps, seconds = self.step - self.session_step, self.train_seconds - self.session_seconds
        speed = steps * self.config.batch_size * self.needs.window / seconds
        rates = {f"lr_{name}": optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
        line = (
            {"step": self.step, "seconds": round(self.train_seconds, 3)}
            | values
            | rates
            | {"frames_per_second": speed}
        )
        if self.heat.temperature is not None:
            line["temperature"] = self.heat.temperature
        append_log(self.run_dir, line)
        self.alarms.look("log", values, self.step)
        name, value = next(iter(values.items()))
        memory = (
            torch.cuda.max_memory_allocated(self.device) / 1e9
            if self.device.type == "cuda"
            else (peak_memory_mb() or 0) / 1e3
        )
        total = self.schedule.last_step(self.step)
        self.progress.update(self.step, total, f"{name} {value:.4f}  {speed:.0f} frames/s  {memory:.1f} GB")
        for phase, calls in self.stepper.calls.items():
            finite = calls - values[f"skipped_{phase}"]
            self.lost[phase] = 0 if finite else self.lost[phase] + calls
            self.stepper.calls[phase] = 0
        phase, lost = max(self.lost.items(), key=lambda item: item[1])
        if lost >= PATIENCE:
            self._save()
            raise RunGivenUp(
                f"none of the last {lost} updates of phase {phase!r} was finite (now at step {self.step}); "
                "lower the learning "
                "rates, or go on with precision='fp32' from an earlier checkpoint"
            )

    def _judged(self):
        return self.ema if self.ema is not None else self.system.eval()

    def _preview(self):
        with self._timed("preview"):
            self._save_strip("step", *self.task.preview(self._judged()))
        self.system.train()
        self.previewed_at = self.step

    def _save_strip(self, name, rows, labels, columns):
        media.save_picture(
            self.run_dir / PREVIEWS / f"{name}_{self.step:08d}.png", media.strip(rows, labels, columns)
        )

    def _evaluate(self, between):
        best = read_pointer(self.run_dir / BEST)
        self.controls.doing = "judging"
        try:
            with self._timed("judging"):
                self.metrics = self.task.figures(self._judged(), between)
                if self.judge.steerable is not None:
                    self._save_strip("actions", *self.judge.steered(self._judged()))
        except GivenUp:
            return
        finally:
            self.system.train()
        self.judged_at = self.step
        with atomic_path(self.run_dir / JUDGEMENT) as temporary:
            temporary.write_bytes(draw_judgement(self.metrics))
        self.alarms.look("judgement", self.metrics)
        self.write_report("stopped", "still running, or killed")
        figure, value = best_by(self.metrics, self.config.restitution, self.step)
        if best is None or best["metric"] != figure or value > best["value"]:
            checkpoints.mark_best(self.run_dir, self._save(), figure, value)

    def _save(self):
        name = checkpoint_name(self.step)
        if self.saved == name:
            return name
        with self._timed("saving"):
            self._write_checkpoint()
        self.saved_at = time.monotonic()
        return self.saved

    def _write_checkpoint(self):
        files = self.system.extra_files()
        state = {
            "step": self.step,
            "schedule": self.schedule.state(self.step),
            "train_seconds": self.train_seconds,
            "paused_seconds": self.paused_seconds,
            "wall_seconds": self.wall_seconds,
            "batches": self.batches.state(),
            "stepper": self.stepper.state(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "extra": self.system.extra_state(),
        }
        ema = None if self.ema is None else self.ema.state_dict()
        self.saved = checkpoints.save(
            self.run_dir, self.step, self.system.state_dict(), state, self._about(), ema, files
        )
        checkpoints.prune(self.run_dir, self.config.keep_checkpoints)

    # ---- the run folder

    def _about(self):
        return about(self.system, self.config, self.dataset)

    @property
    def given_up(self):
        return bool(self.heat.emergency) or max(self.lost.values()) >= PATIENCE

    @property
    def precision(self):
        return str(self.dtype).removeprefix("torch.")

    @property
    def parameters(self):
        return sum(p.numel() for p in self.system.parameters())

    @property
    def wall_seconds(self):
        return self.earlier_wall_seconds + time.monotonic() - self.schedule.started

    def write_report(self, status, reason):
        written = report(self, status, reason)
        write_json(self.run_dir / REPORT, written)
        return written


def _due(step, every):
    return every > 0 and step % every == 0
