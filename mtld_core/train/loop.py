"""The loop: a run in progress, from its first step of this session to its report."""

import contextlib
import dataclasses
import math
import time
import typing

import torch

from mtld_core import media
from mtld_core.chance import seed_of
from mtld_core.config import AtLeastOne, BelowOne, NotNegative, Positive, RunGivenUp, Settings, check
from mtld_core.data import Batches, with_ends
from mtld_core.judge.task import Task, best_by, summary
from mtld_core.judge.windows import check_stages
from mtld_core.machine import backends, graphs, memory
from mtld_core.machine.compiling import Compiling
from mtld_core.machine.group import ALONE
from mtld_core.machine.heat import Heat
from mtld_core.nn.average import averaged_copy, move
from mtld_core.nn.conv import to_channels_last
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.runs.folder import (
    BEST,
    CONFIG,
    JUDGEMENT,
    LOG,
    LOSSES,
    PREVIEWS,
    REPORT,
    append_log,
    checkpoint_name,
    read_pointer,
    rewind,
    write_part,
)
from mtld_core.runs.resume import check_origin, checkpoint_to_resume, other_settings
from mtld_core.runtime import (
    name_of,
    pick_device,
    pick_judged_precision,
    pick_precision,
)
from mtld_core.train.controls import SECONDS_BETWEEN_LINES, Progress
from mtld_core.train.plots import Log, draw, draw_judgement
from mtld_core.train.report import Alarms, about, peak_gigabytes, report
from mtld_core.train.schedule import Schedule, clock
from mtld_core.train.stepper import Stepper

SOON = 5  # seconds of training after which there is something to see, whatever the settings
SECONDS_BETWEEN_LOOKS = 0.1  # while paused
PATIENCE = 20  # updates of a phase in a row that were not finite, after which the run is given up
FEW, MORE = 1 / 16, 1 / 8  # of all windows: enough to see how long judging takes
MOST_TO_EXPECT = 0.03  # of the budget, to judge each of those
LONGEST_LOOK = 10  # seconds for that where there is no budget
# when a GPU is waited for, besides at log lines, to see how long a step takes
EARLY_STEPS, SECONDS_BETWEEN_READINGS = 8, 5  # the first ones are not replayed yet
NOISE = 0.2  # dB by which a judgement may be below the best one and count as no worse
BYTES_A_SECOND = 60e6  # that a checkpoint is written and checked at, until one was


@dataclasses.dataclass(frozen=True)
class LoopConfig(Settings):
    """Where a run lies and how it is computed."""

    preset: str = ""  # a label for the report
    run_dir: str = ""  # "": runs/<system>_<time stamp>
    mirror_dir: str = ""  # gets a copy of the run, as <mirror_dir>/<its name>; "": none
    # "auto": go on where run_dir stopped; "never"; or another run's folder to start from
    resume: str = "auto"
    seed: int = 0
    device: str = "auto"
    devices: NotNegative[int] = 1  # processes, each on a card of its own; 0: one for every card
    # of the processor, for a step; "auto": the fastest number, tried now and then
    threads: int | str = "auto"
    interactive: typing.Literal["auto", True, False] = "auto"
    precision: typing.Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    # replay steps as CUDA graphs; "auto": where there is a GPU and the system's steps are alike
    graphs: typing.Literal["auto", "on", "off"] = "auto"
    deterministic: bool = False  # the same again on the same GPU; slower
    channels_last: bool = True
    # on a GPU, begin with the largest batch that still trains more windows a second than half of it
    fit_batch: bool = False
    lr_scale: Positive[float] = 1.0  # what every learning rate is multiplied by
    accumulate: AtLeastOne[int] = 1  # parts that a batch is computed in
    clip_norm: NotNegative[float] = 1.0  # of each phase's gradient; 0: none
    # moving average of the weights, used for judging and generating; 0: none
    ema_decay: BelowOne[float] = 0.999
    log_every_steps: AtLeastOne[int] = 10
    save_every_minutes: NotNegative[float] = 10.0  # 0: by steps alone
    keep_checkpoints: AtLeastOne[int] = 2

    def __post_init__(self):
        super().__post_init__()
        threads = self.threads
        counted = type(threads) is int and threads >= 1
        check(counted or threads == "auto", f"threads must be 'auto' or a number from 1, not {threads!r}")


class GivenUp(Exception):
    """Judging on the way was given up, because the run is to end."""


class Training:
    """A run in progress: what `fit` holds while it trains. `run()` is the loop.

    group: of the processes that take part. Each has a `Training` of its own and takes the same steps. What
    lies in the run's folder, figures and pictures are the first one's alone, and its clock counts.
    """

    ema = None  # the average of the weights, where there is one
    better = True  # whether no figures before the newest ones were better
    step = 0
    train_seconds = paused_seconds = earlier_wall_seconds = 0.0
    unread_steps, unread_seconds = 0, 0.0  # since the time of a step was last read
    saved = None  # name of the checkpoint of the present state
    judged_at = previewed_at = logged_at = None  # steps of this session

    def __init__(self, system, dataset, config, run_dir, controls, threads, began, group=ALONE):
        self.config, self.run_dir, self.group = config, run_dir, group
        self.controls, self.threads = controls, threads
        self.device = pick_device(group.card(config.device), controls.say)
        self.dtype, why = pick_precision(self.device, config.precision)
        self.precision = name_of(self.dtype)
        folder, manifest = checkpoint_to_resume(run_dir, config.resume, controls.say)

        # ---- what learns, and from what
        self.needs = system.needs()
        self.given = dataset  # which stays in RAM
        self.task = Task(system, dataset.to(self.device), config, controls.say)
        self.dataset = self.task.dataset
        self.batches = Batches(
            self.dataset,
            self._starts(),
            self.needs.window,
            config.batch_size,
            config.seed,
            self.needs.batches,
            self.device,
            group=group,
        )
        self.system = system.to(self.device).train()
        if config.channels_last:
            to_channels_last(system)
        group.spread(system.state_dict().values())
        self.optimizers = system.optimizers()
        self.learning_rates = {name: _rates(each, config.lr_scale) for name, each in self.optimizers.items()}
        system.precision = pick_judged_precision(self.device, config.precision)
        if config.ema_decay and group.leads:
            self.ema = averaged_copy(system)
        self.stepper = self._stepper()

        # ---- what may end it
        self.schedule = Schedule(config, self.batches.steps_per_epoch, controls.stop, began)
        self.heat = Heat(config)
        self.alarms = Alarms(system, controls.say)
        self.lost = dict.fromkeys(self.optimizers, 0)  # updates of each phase in a row that were not finite

        # ---- how far it is
        self.metrics = {}  # the newest figures
        system.setup_training(run_dir)
        if folder is None:
            self._begin()
        else:
            self._resume(folder, manifest)
        self._compare(group)
        self.parameters = sum(parameter.numel() for parameter in system.parameters())
        self.session_step, self.session_seconds = self.step, self.train_seconds  # where this session began

        if config.compile:
            self._compile()
        self.do_step = self._step_work()
        if group.leads:
            rewind(run_dir, self.step)
            write_part(run_dir, CONFIG, self._about())
        self._introduce(why)

    def _stepper(self):
        config = self.config
        return Stepper(
            self.optimizers,
            self.device,
            self.dtype,
            config.accumulate,
            config.clip_norm,
            self.controls.say,
            self.group,
            self._make_room,
            # a compiler fuses what autocast does into its own kernels
            system=None if config.compile else self.system,
        )

    def _compile(self):
        system, say = self.system, self.controls.say
        parts = system.to_compile() if system.steps_are_alike else []
        if not parts:
            say(f"compile=true: nothing of {system.name} is compiled")
        self.stepper.compiling = Compiling(parts, self.dtype, say)

    def _starts(self):
        """Where the windows to learn from begin, for each domain."""
        if self.config.restitution:
            return [with_ends(rows, self.needs.window) for rows in self.task.learned]
        return self.task.learned

    def _introduce(self, why):
        say = self.controls.say
        judged = f"{len(self.task.judge.starts)} held-out ones"
        if self.config.restitution:
            judged = "the same ones (restitution)"
        going_on = ""
        if self.step:
            rate = self.schedule.curve(self.step)
            going_on = f", going on at step {self.step} with {rate:.0%} of the learning rate"
        say(
            f"{self.system.name}: {self.parameters:,} parameters on {self.device} in {self.precision} ({why})"
        )
        if not self.group.alone:
            whole, size = self.config.batch_size, self.group.size
            say(f"{size} processes, {whole // size} of a batch's {whole} windows on each")
        windows = sum(map(len, self.task.learned))
        say(f"{windows} windows of {self.needs.window} frames to learn, judged on {judged}")
        say(f"run folder {self.run_dir}{going_on}")

    def _tell_needs(self):
        """Say what the run will need: memory, time a step, and all of it where a length or budget says."""
        schedule = self.schedule
        line = f"a step takes {schedule.step_seconds:.2g} s and {peak_gigabytes(self.device):.1f} GB"
        if self.do_step.replays:
            line += ", as a CUDA graph"
        if left := schedule.time_left(self.step):
            line += f": until step {schedule.last_step(self.step):,} about {left} more"
        self.controls.say(line)

    def run(self):
        """Train until the schedule, a person or the heat ends it; returns what report.json holds."""
        config, schedule = self.config, self.schedule
        self.progress = Progress(self.step, config.interactive, self.controls.say)
        self.saved_at = time.monotonic()
        while (end := self._attend()) is None:
            # ---- every step: train
            began = time.monotonic()
            logs = self._train_step()
            self.step += 1
            log = self.group.leads and (
                self._is_due(config.log_every_steps) or (self.logged_at is None and self._trained_a_while)
            )
            values = self._fetch(logs) if log else None  # waits for the device
            whole = log or self._wait_to_read()
            self._read_time(time.monotonic() - began, whole)

            # ---- all else is the first process's work; before what lasts it is seen that all hold the same
            if self._is_due(config.save_every_steps) or self._is_due(config.eval_every_steps):
                self._compare(self.group)
            if not self.group.leads:
                continue

            # ---- once, after some steps: what the run will need
            if self.step == self.session_step + EARLY_STEPS:
                self._tell_needs()

            # ---- every log_every_steps: a line of metrics.jsonl
            if log:
                self._log(values)
                self._give_up_if_lost(values)

            # ---- once, when it is known how long a step takes: show a first picture, and look at the end
            if schedule.lacks_expectations and (
                schedule.budget or (self.logged_at and self._trained_a_while)
            ):
                self._expect_the_end()

            # ---- every save_every_steps; those by the clock are among the wishes that `_attend` agrees on
            if self._is_due(config.save_every_steps):
                self._save()

            # ---- every preview_every_steps, and every eval_every_steps
            if self._is_due(config.preview_every_steps) and schedule.has_room_for("preview"):
                self._preview()
            if self._is_due(config.eval_every_steps) and schedule.has_room_for("judging"):
                self._evaluate(self._attend_judging)

        # ---- once: the end
        return self._end(*end)

    def try_out(self, steps, longest, look_at_end):
        """Train for so many steps, or seconds, to see how long a step takes. Nothing is saved.

        look_at_end: also how long the end will.
        """
        until = time.monotonic() + longest
        while not self.schedule.knows_the_speed or (self.step < steps and time.monotonic() < until):
            began = time.monotonic()
            self._fetch(self._train_step())
            self.step += 1
            self._read_time(time.monotonic() - began, whole=True)
        if look_at_end:
            self._expect_the_end()

    def _is_due(self, every):
        return every > 0 and self.step % every == 0

    @property
    def _trained_a_while(self):
        return self.train_seconds - self.session_seconds > SOON

    def _end(self, status, reason):
        self._compare(self.group)
        if not self.group.leads:
            return report(self, status, reason)
        controls, schedule = self.controls, self.schedule
        self.progress.close(self.step)
        controls.doing = "saving and judging"
        controls.pace = []
        controls.say("saving and judging ...")
        budget_spent = status == "finished" and not schedule.total
        if budget_spent and self.step == self.session_step:
            status = "stopped"
            reason = "the time budget was spent before the first step; give it more minutes"
        elif budget_spent:
            schedule.finish()
            self.saved = None  # what may have been saved at this step does not know that it is the last

        # first what must not be lost
        self._save()
        controls.ending = True
        if self.previewed_at != self.step:
            self._preview()
        # judging is as hard work as training
        if self.judged_at != self.step and not (self.heat.emergency or controls.hurry):
            stopped = controls.stop.is_set()

            def look():
                if controls.hurry or (controls.stop.is_set() and not stopped):  # a stop that came since
                    raise GivenUp

            self._evaluate(look)
        if schedule.overrun and schedule.elapsed > schedule.budget:
            controls.say(f"warning: {schedule.overrun}")
        written = self.write_report(status, reason)
        controls.say(f"{status} at step {self.step} ({reason}): {summary(self.metrics)}")
        controls.say(written["verdict"])
        return written

    # ---- every step

    def _train_step(self):
        step = self.step
        # whatever draws without a key: the same after a resume
        torch.manual_seed(seed_of(self.config.seed, "step", step))
        self.system.progress = self.schedule.done(step)
        factor = self.schedule.learning_rate(step)
        for name, rates in self.learning_rates.items():
            for group, rate in zip(self.optimizers[name].param_groups, rates, strict=True):
                graphs.set_rate(group, rate * factor)
        logs = self.do_step(self.batches.next())
        if self.ema:
            short = (1 + step) / (10 + step)  # a short memory while much still moves
            move(self.ema, self.system, 1 - min(self.config.ema_decay, short))
        return logs

    def _make_room(self):
        """Take the frames from RAM from now on, where they lie on the GPU. Returns whether they did."""
        if self.dataset is self.given:
            return False
        self.controls.say("out of memory: the frames move from the GPU back to RAM")
        self.dataset = self.given
        self.task = Task(self.system, self.given, self.config, self.controls.say)
        for stream, domain in zip(self.batches.streams, self.given.domains, strict=True):
            stream.dataset = domain
        return True

    def _guarded(self, work):
        """`work()`, and again with room for it where the GPU is full. Raises GivenUp if it stays so."""
        with backends.without_trials():
            # first of all a recorded step, which holds all the memory that a step takes
            for make_room in (self.do_step.forget, self._make_room, None):
                try:
                    return work()
                except Exception as error:
                    if not memory.is_full(error):
                        raise
                if make_room:
                    make_room()
                    memory.give_back()
        self.controls.say("out of memory while judging or drawing a preview: this one is left out")
        raise GivenUp

    def _step_work(self):
        """What takes a list of batches, trains on them and returns what is to be logged: a `Recorded`."""

        def work(batches):
            return self.system.training_step(batches, self.stepper)

        config, device, alike = self.config, self.device, self.system.steps_are_alike
        why_not = graphs.why_not(config.graphs, device, alike, config.accumulate, self.group.size)
        if not why_not:
            for optimizer in self.optimizers.values():
                graphs.with_rates_in_tensors(optimizer, device)
        elif graphs.can_record(device):
            self.controls.say(f"steps are not replayed as CUDA graphs: {why_not}")
        return graphs.Recorded(work, device, "a training step", self.controls.say, why_not)

    def _attend(self, doing="training"):
        """Save if asked to, and wait while a person or the heat wants it.

        Returns None to go on `doing`, else (status, reason) to end.
        """
        group = self.group if doing == "training" else ALONE  # for the others wait while the first one judges
        controls, began = self.controls, time.monotonic()
        waited = False
        controls.step, controls.total = self.step, self.schedule.last_step(self.step)
        while True:
            wished = group.agree(**self._wishes(doing))
            if wished["save"]:
                self._compare(group)
                self._save()
                controls.save.clear()
            while self.heat.news:
                controls.say(self.heat.news.popleft())
            end = self._reason_to_end(wished)
            if end or not wished["wait"]:
                break
            paused = "paused" if controls.pause.is_set() else "another process rests"
            controls.doing = self.heat.resting or paused
            waited = True
            controls.stop.wait(SECONDS_BETWEEN_LOOKS)
        if waited:
            self.paused_seconds += time.monotonic() - began
        controls.doing = doing
        return end

    def _wishes(self, doing):
        """What this process wants before it goes on `doing`: under each name the largest of all counts."""
        controls, heat, leads = self.controls, self.heat, self.group.leads
        late = doing == "training" and self.step > self.session_step and self._until_late() == 0
        return {
            "stop": controls.stop.is_set(),
            "hurry": controls.hurry,
            "hot": bool(heat.reason_to_end(time.monotonic())),
            "end": leads and self.schedule.reason_to_end(self.step) is not None,
            "save": leads and (late or controls.save.is_set()),
            "wait": controls.pause.is_set() or bool(heat.resting),
            "progress": self.schedule.progress if leads else 0.0,
        }

    def _reason_to_end(self, wished):
        """(status, reason) where a process wished the end, else None."""
        if wished["stop"]:
            self.controls.stop.set()
        if wished["hurry"]:
            self.controls.hurry = True
        if wished["hot"] and not self.heat.emergency:
            self.heat.emergency = "the GPU of another process got too hot"
        self.schedule.progress = wished["progress"]
        if wished["hot"]:
            return "stopped", self.heat.emergency
        if wished["stop"] or wished["end"]:
            return self.schedule.reason_to_end(self.step) or ("finished", "as the first process says")
        return None

    def _compare(self, group):
        group.compare(self.system.state_dict(), self.step)

    def _attend_judging(self):
        self._attend("judging")
        if self.controls.stop.is_set() or self.heat.emergency:  # the end judges once more, or must not
            raise GivenUp

    # ---- time

    def _wait_to_read(self):
        """Whether this step is over, so that its time can be read.

        A GPU is waited for at first, and then every few seconds.
        """
        if self.device.type == "cuda":
            early = self.step - self.session_step <= EARLY_STEPS
            if not early and self.unread_seconds < SECONDS_BETWEEN_READINGS:
                return False
            # not the whole device: that would spoil what another thread records
            torch.cuda.current_stream(self.device).synchronize()
        return True

    def _read_time(self, took, whole):
        """Take a reading of a step, in seconds. whole: of all of it, and not only of its start on a GPU."""
        self.train_seconds += took
        self.unread_steps += 1
        self.unread_seconds += took
        if whole:
            seconds = self.unread_seconds / self.unread_steps
            self.schedule.read(seconds)
            self.threads.see(seconds)
            self.unread_steps, self.unread_seconds = 0, 0.0
        self.schedule.advance()

    def _expect_the_end(self):
        """Draw a first preview, and estimate from few windows how long saving and judging will take."""
        schedule = self.schedule
        # weights, average, two moments
        stored = 4 * sum(tensor.nbytes for tensor in self.system.state_dict().values())
        schedule.expect("saving", stored / BYTES_A_SECOND)
        self.controls.doing = "looking how long judging takes"
        with self.threads.settled():
            began = time.monotonic()
            with contextlib.suppress(GivenUp):
                picture = self._guarded(lambda: self.task.preview(self._judged()))
                if self.config.preview_every_steps:
                    self._save_strip("step", *picture)
            schedule.expect("preview", time.monotonic() - began)
            self._judge_few(FEW)  # fills caches and loads networks
            share, seconds, whole = self._judge_few(FEW)
            expected = seconds / share
            if whole:  # what it costs to begin with tells from what each window costs
                larger, longer, whole = self._judge_few(MORE)
                if whole and larger > share:
                    expected = max(longer, seconds + (longer - seconds) * (1 - share) / (larger - share))
            schedule.expect("judging", expected)
        self.system.train()
        if schedule.overrun:
            self.controls.say(f"warning: {schedule.overrun}")

    def _judge_few(self, share):
        """(share of the windows that was judged, its seconds, whether it was done or took too long)."""
        _, share = self.task.few(share)
        judged, began = self._judged(), self._clock()
        until = time.monotonic() + (MOST_TO_EXPECT * self.schedule.budget or LONGEST_LOOK)
        whole = True

        def look():
            self._attend("looking how long judging takes")
            if self.controls.stop.is_set() or time.monotonic() > until:
                raise GivenUp

        try:
            self._guarded(lambda: self.task.few(share)[0].figures(judged, look))
        except GivenUp:
            whole = False
        return share, self._clock() - began, whole

    @contextlib.contextmanager
    def _timed(self, work):
        began = self._clock()
        with self.threads.settled():
            yield
        self.schedule.took(work, self._clock() - began)

    def _clock(self):
        """Seconds of a clock that stands still in pauses."""
        return time.monotonic() - self.paused_seconds

    # ---- every log_every_steps

    def _fetch(self, logs):
        skipped, calls = self.stepper.skipped, self.stepper.calls
        logs = logs | {f"skipped_{phase}": count for phase, count in skipped.items()}
        values = torch.stack([value.float() for value in [*logs.values(), *calls.values()]]).tolist()
        self.calls = dict(zip(calls, values[len(logs) :], strict=True))
        for count in [*skipped.values(), *calls.values()]:
            count.zero_()
        return dict(zip(logs, values, strict=False))

    def _log(self, values):
        step = self.step
        steps, seconds = step - self.session_step, self.train_seconds - self.session_seconds
        speed = steps * self.config.batch_size * self.needs.window / seconds
        rates = {f"lr_{name}": _rates(optimizer)[0] for name, optimizer in self.optimizers.items()}
        line = {"step": step, "seconds": round(self.train_seconds, 3)}
        line |= values | rates | {"frames_per_second": speed}
        if (degrees := self.heat.newest.temperature) is not None:
            line["temperature"] = degrees
        append_log(self.run_dir, line)
        self.logged_at = step
        self.alarms.look("log", values, step)

        name, value = next(iter(values.items()))
        text = f"{name} {value:.4f}  {speed:.0f} frames/s  {peak_gigabytes(self.device):.1f} GB"
        left = self.schedule.time_left(step)
        self.progress.update(step, self.schedule.last_step(step), left, text)
        self.controls.pace = [f"{speed:.0f} frames/s"]
        if left:
            self.controls.pace.append(f"{left} left, judging included")
        if until := self._until_save():
            self.controls.pace.append(f"next save in {clock(until)}")

    def _until_save(self):
        """Seconds until the next save, by steps or by the clock; None where only the end saves."""
        config, seconds = self.config, []
        if every := config.save_every_steps:
            seconds.append((every - self.step % every) * self.schedule.step_seconds)
        if config.save_every_minutes:
            seconds.append(self._until_late())
        return min(seconds, default=None)

    def _until_late(self):
        """Seconds until a save by the clock is due; infinite where none ever is."""
        minutes = self.config.save_every_minutes or math.inf
        return max(0.0, 60 * minutes - (time.monotonic() - self.saved_at))

    def _give_up_if_lost(self, values):
        for phase, calls in self.calls.items():
            finite = calls - values[f"skipped_{phase}"]
            self.lost[phase] = 0 if finite else self.lost[phase] + int(calls)
        phase, lost = max(self.lost.items(), key=lambda item: item[1])
        if lost >= PATIENCE:
            self._save()
            raise RunGivenUp(
                f"none of the last {lost} updates of phase {phase!r} was finite (now at step {self.step}); "
                "lower the learning rates, or go on with precision='fp32' from an earlier checkpoint"
            )

    # ---- every preview_every_steps and every eval_every_steps

    def _judged(self):
        return self.ema or self.system.eval()

    def _preview(self):
        with self._timed("preview"), contextlib.suppress(GivenUp):
            self._save_strip("step", *self._guarded(lambda: self.task.preview(self._judged())))
        self.system.train()
        self.previewed_at = self.step

    def _save_strip(self, name, rows, labels, columns):
        path = self.run_dir / PREVIEWS / f"{name}_{self.step:08d}.png"
        media.save_picture(path, media.strip(rows, labels, columns))

    def _evaluate(self, tick):
        """Judge, report, and see whether this is the best checkpoint. tick: see `Task.figures`."""
        best = read_pointer(self.run_dir / BEST)
        tick = self._tell_progress(tick)
        try:
            with self._timed("judging"):
                self.metrics = self._guarded(lambda: self.task.figures(self._judged(), tick))
                if self.task.judge.steerable is not None:
                    self._save_strip("actions", *self.task.judge.steered(self._judged()))
                if self.task.life:
                    self._save_strip("life", *self.task.life.sheet)
        except GivenUp:
            return
        finally:
            self.system.train()
        self.judged_at = self.step
        write_part(self.run_dir, JUDGEMENT, draw_judgement(self.metrics))
        self.alarms.look("judgement", self.metrics)
        figure, value = best_by(self.metrics, self.config.restitution, self.step)
        comparable = best and best["metric"] == figure
        gain = value - best["value"] if comparable else math.inf
        self.better = gain > -NOISE
        self.write_report("stopped", "still running, or killed")
        if gain > 0:
            checkpoints.mark_best(self.run_dir, self._save(), figure, value)

    def _tell_progress(self, tick):
        """`tick` that also says how far judging is, as its time tells where one was seen or estimated."""
        controls, whole = self.controls, self.schedule.cost("judging")
        began = said = time.monotonic()
        controls.doing = "judging"

        def look():
            nonlocal said
            tick()
            now = time.monotonic()
            controls.doing = f"judging for {clock(now - began)}"
            if whole:
                controls.doing = f"judging, {min(99, 100 * (now - began) / whole):.0f} %"
            if now - said >= SECONDS_BETWEEN_LINES:
                said = now
                controls.say(controls.doing)

        return look

    # ---- a checkpoint is read at the beginning, and written every save_every_steps

    def _begin(self):
        check_stages(self.system, self.dataset, self.config)
        self.system.prepare(*self.task.samples)
        if self.ema:
            self.ema.load_state_dict(self.system.state_dict())

    def _resume(self, folder, manifest):
        origin = folder, manifest["config"], self._about(), self.run_dir
        check_origin(*origin)
        then, now = (about["dataset"].get("digest") for about in origin[1:3])
        if then not in (None, now):
            self.controls.say(
                f"{self.dataset.path} holds other pictures than this run began with: it goes on with them, "
                "and its figures before and after are of different data"
            )
        weights = checkpoints.load_weights(folder, ema=False)
        checkpoints.load_state_dict(self.system, weights, folder, other_settings(*origin))
        if self.ema:
            self.ema.load_state_dict(checkpoints.load_weights(folder))
        state = checkpoints.load_train_state(folder)
        self.step = state["step"]
        self.train_seconds, self.paused_seconds = state["train_seconds"], state["paused_seconds"]
        self.earlier_wall_seconds = state["wall_seconds"]
        spent = self.earlier_wall_seconds
        self.schedule.resume(self.step, state.get("schedule"), state.get("total", 0), spent)
        self.batches.load_state(state["batches"])
        self.stepper.load_state(state["stepper"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            _lay_out_like_weights(optimizer)
        run_dir = folder.parent.parent
        self.system.load_extra_state(state["extra"], run_dir)
        if run_dir == self.run_dir:
            self.saved = checkpoint_name(self.step)

    def _save(self):
        """Write a checkpoint unless this step has one; returns its name relative to the run's folder."""
        name = checkpoint_name(self.step)
        if self.saved == name or not self.group.leads:
            return name
        with self._timed("saving"):
            self.saved = self._write_checkpoint()
            checkpoints.prune(self.run_dir, self.config.keep_checkpoints)
        self.saved_at = time.monotonic()
        return name

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
            "optimizers": {
                name: graphs.plain_state(optimizer) for name, optimizer in self.optimizers.items()
            },
            "extra": self.system.extra_state(),
        }
        ema = self.ema.state_dict() if self.ema else None
        weights = self.system.state_dict()
        return checkpoints.save(self.run_dir, self.step, weights, state, self._about(), ema, files)

    # ---- what the run says of itself

    def _about(self):
        return about(self.system, self.config, self.dataset)

    @property
    def given_up(self):
        return bool(self.heat.emergency) or max(self.lost.values()) >= PATIENCE

    @property
    def wall_seconds(self):
        return self.earlier_wall_seconds + time.monotonic() - self.schedule.started

    def write_report(self, status, reason):
        written = report(self, status, reason)
        write_part(self.run_dir, REPORT, written)
        log = Log(self.run_dir / LOG)
        log.read()
        write_part(self.run_dir, LOSSES, draw(log.lines))
        return written


def _rates(optimizer, scale=1.0):
    return [scale * float(group["lr"]) for group in optimizer.param_groups]


def _lay_out_like_weights(optimizer):
    """The fused kernel pairs raw memory: give each moment the memory layout of its parameter."""
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if moment.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(moment)
