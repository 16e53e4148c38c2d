"""Steering a learned game: `Play` is a dream in progress, with the real game beside it where that runs.

Frames are uint8 `[H, W, 3]`. `actions[i]` leads from frame i to frame i + 1.
"""

import collections
import contextlib
import functools
import itertools
import random
import re
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from mtld_core import media
from mtld_core.config import UserError, can_write, check, reason_of
from mtld_core.frames import differs, evenly
from mtld_core.generate.jobs import check_settings
from mtld_core.generate.rollouts import check_actions, stepping
from mtld_core.generate.source import from_dataset, read_source, starts_in
from mtld_core.machine import memory
from mtld_core.machine.threads import using
from mtld_core.play.keys import WORDS
from mtld_core.play.parting import SHOWS, Parting
from mtld_core.play.policies import POLICIES
from mtld_core.play.real_game import RealGame
from mtld_core.runs.folder import read_report
from mtld_core.systems.opening import own_dataset

RECENT = 20  # steps that the speed is the median of
ROOM = 96 * 2**20  # bytes of frames that are kept, and as many of the real game's
LOOKED_AT = 1024  # frames among which a lively one is sought
WHILE = 24  # frames that it has to stay lively
PLACES = 8  # along a side
SAMPLE = 128  # frames of the recording that its median frame is made of, at most
PARTED = "parted"
# A step on one picture is many short operations, which wait for a second thread longer than it helps: on two
# cores that were busy (with a training, say) 1,660 ms a step became 16.
in_one_thread = using(1)


class Play:
    """A dream in progress, from `reset`, under one `act` after another.

    dataset: None for the run's own. source: what `generate` takes: an image, a clip, "dataset:<arc>/<frame>";
    "" for where most moves in the first held-out episode. choices: [(name, action)], what a player is
    offered. seed: what a system that draws is started with: 0, and one more at each reset. steps: how many
    were taken since the reset. frames: the newest, the start first while 96 MB hold them all (8,192 of
    64x64); actions: those between them. real: the real game's frames beside them, None where it cannot be
    stepped: `alone` then says why. over: the real game has ended, or failed (`alone` says how); its last
    frame stays. sync_when: None, or after how many steps again and again, or "parted", `sync` is called by
    itself; synced: the step of the latest one, or None. chance: a `random.Random`, for policies. Raises
    UserError where the system takes no actions, the dataset is gone, or there is no such source.
    """

    seed = -1
    sync_when = _game = None

    def __init__(self, system, dataset=None, source=""):
        if system.action_space is None:
            raise UserError(f"{system.name} takes no actions, so there is nothing to steer")
        self.system = system.eval()
        self.dataset = dataset or own_dataset(system, progress=False)
        self.choices = choices(system, self.dataset)
        self._step = stepping(self.system)
        self._drawn = torch.Generator(self.system.device)  # one for all dreams, as a graph knows it
        self._begin = source or self._lively_start()
        self.reset()

    @property
    def labels(self):
        return [name for name, _ in self.choices]

    @property
    def starts(self):
        """{arc: numbers of the frames that a dream can start from}."""
        return starts_in(self.system, self.dataset)

    @property
    def start(self):
        """(arc, number) of the recorded frame that this dream started from; None where it is none."""
        found = re.fullmatch(r"(?s)dataset:(.*)/(\d+)", self.source.text)
        return found and (found[1], int(found[2]))

    @torch.inference_mode()
    @in_one_thread
    def reset(self, arc=None, number=None):
        """Start anew from a recorded frame; None: where it first began. Raises UserError."""
        begin = self._begin if arc is None else f"dataset:{arc}/{number}"
        if begin.startswith("dataset:"):
            self.source = from_dataset(self.system, self.dataset, begin)
        else:
            self.source = read_source(self.system, begin)
        self.seed += 1  # the same start may lead elsewhere
        self.chance = random.Random(self.seed)
        self._drawn.manual_seed(self.seed)
        self.frames, self.actions, self.steps = [self.source.context[-1]], [], 0
        self._imagine(self.source.context)
        self._seconds = collections.deque(maxlen=RECENT)
        self._bring_game()

    @torch.inference_mode()
    @in_one_thread
    def act(self, action):
        """Take one step -> the dream's frame. Raises UserError for an action that is none."""
        [checked] = check_actions([action], self.system.action_space, 1, self.system.device)
        began = time.perf_counter()
        self._state, [frame] = self._step(self._state, checked)
        frame = memory.on_its_way(frame)()  # which waits for the device
        self._seconds.append(time.perf_counter() - began)
        if self.real:
            self._step_game(checked[0], frame)
        self.steps += 1
        self.frames.append(frame)
        self.actions.append(action)
        self._recent.append(frame)
        self._forget()
        if self._sync_is_due():
            self.sync()
        return self.frames[-1]

    @torch.inference_mode()
    @in_one_thread
    def sync(self):
        """Go on from the real game's newest frames: the dream's newest one becomes the real one.

        Raises UserError where no real game runs beside it.
        """
        check(self.real is not None, f"there is no real game to sync with: {self.alone}")
        check(not self.over, "the real game is over")
        self.frames[-1] = self.real[-1]
        k = len(self._recent)
        self._imagine([*self.source.context, *self.real[1:][-k:]])
        self._parting, self.synced = Parting(self.median), self.steps

    def dream_on(self, steps, policy="sticky"):
        """Take `steps` steps by itself: an iterator over the dream's frames, each made when it is asked for.

        policy: "hold" (the last action again), "sticky" (that with a chance of 0.75, else any), "track" (what
        the actions move follows what moves by itself), or a function that takes this `Play` and returns an
        action. Raises UserError for any other, or a number below 1.
        """
        check(isinstance(steps, int) and steps >= 1, f"steps must be a whole number from 1 on, not {steps!r}")
        chosen = POLICIES.get(policy) if isinstance(policy, str) else policy
        check(
            callable(chosen),
            f"policy={policy!r} is not {', '.join(map(repr, POLICIES))} or a function of a Play",
        )
        policy = in_one_thread(chosen)
        return (self.act(policy(self)) for _ in range(steps))

    @functools.cached_property
    def median(self):
        """The median of some frames of the recording, uint8 `[H, W, 3]`: what is there when nothing moves."""
        rows = evenly(len(self.dataset.frames), SAMPLE)
        return self.dataset.frames[rows].cpu().median(0).values

    @property
    def recent(self):
        """The k newest frames, recorded ones among them until k are dreamed: uint8 `[k, H, W, 3]`."""
        return torch.stack([*self._recent])

    @property
    def over(self):
        return self._game is not None and self._game.over

    @property
    def parted(self):
        """The step at which the dream and the real game parted (see `Parting`); None where they have not."""
        return None if self.real is None else self._parting.step

    @property
    def frames_per_second(self):
        """Frames a second of the model alone, by the newest steps; None before the first one."""
        return 1 / statistics.median(self._seconds) if self._seconds else None

    def save(self, path, fps=12):
        """Write the frames that are kept as `<path>.mp4` and `<path>.gif` -> their paths.

        Files of these names are replaced; a path that ends so already stays as it is. The real game, where it
        runs, is on the left. Raises UserError where they cannot be written.
        """
        check_settings(fps=fps)
        base = re.sub(r"(?i)\.(mp4|gif)$", "", str(Path(path).expanduser()))
        paths = Path(f"{base}.mp4"), Path(f"{base}.gif")
        pictures = iter(self.frames)
        if self.real:
            pairs = zip(self.real, self.frames, strict=True)
            pictures = (media.strip([pair], columns=["real game", "dream"]) for pair in pairs)
        first = next(pictures)
        size = first.shape[:2]
        with (
            can_write(base, "make room there or choose another path"),
            media.video_writer(paths[0], fps, *size) as video,
            media.gif_writer(paths[1], fps, *size) as gif,
        ):
            for frame in itertools.chain([first], pictures):
                video(frame)
                gif(frame)
        return paths

    def _lively_start(self):
        """Where most moves after the first held-out window begins.

        A picture has 8x8 places. Of 1,024 frames it is the one after which, for 24 frames, most of them
        change from frame to frame, at least in three frames of four: a ball counts as much as what is large,
        and a flash is no motion.
        """
        self.source = from_dataset(self.system, self.dataset)
        frames = [self.source.context[-1], *self.source.truth[:LOOKED_AT].cpu()]
        if len(frames) <= WHILE:
            return self.source.text
        changed = [differs(after, before, SHOWS) for before, after in itertools.pairwise(frames)]
        places = F.adaptive_max_pool2d(torch.stack(changed).float(), PLACES).sum((1, 2))
        lively = places.unfold(0, WHILE, 1).quantile(0.25, 1).argmax().item()
        arc, number = self.start
        numbers = self.starts[arc]
        return f"dataset:{arc}/{numbers[numbers.index(number) + lively]}"

    def _imagine(self, context):
        """Let the system dream on from the newest of these frames, k or more."""
        self._recent = collections.deque(context, maxlen=self.system.needs().context)
        with self.system.computing():
            self._state = self.system.start(self.recent, self._drawn)

    def _sync_is_due(self):
        if not self.sync_when or self.real is None or self.over:
            return False
        if self.sync_when == PARTED:
            return self.parted is not None
        check(
            isinstance(self.sync_when, int),
            f"sync_when must be None, {PARTED!r} or a whole number of steps, not {self.sync_when!r}",
        )
        return self.steps % self.sync_when == 0

    def _step_game(self, action, frame):
        seen = self.real[-1]
        if not self.over:
            try:
                seen = self._game.step(action)
            except Exception as error:  # foreign code, as in `_bring_game`
                self._game.over, self.alone = True, reason_of(error)
            self._parting.compare(self.steps + 1, frame, seen)
        self.real.append(seen)

    def _forget(self):
        """Let go of the oldest frames, and the actions between them, where there is no room for more."""
        most = max(2, ROOM // self.frames[0].nbytes)
        del self.frames[:-most], self.actions[: 1 - most]
        if self.real:
            del self.real[:-most]

    def _bring_game(self):
        with contextlib.suppress(Exception):  # there is none, or it fails even now
            self._game.close()
        self._game = self.real = self.synced = None
        self.alone = ""
        try:
            check(self.start, "it starts from no recorded frame")
            check(self.system.needs().actions, "the run's actions are its own, not the game's")
            self._game = RealGame(self.dataset, *self.start)
            self._parting = Parting(self.median)
            self.real = [self.frames[0]]
        except Exception as error:  # a game is foreign code; the dream needs none
            self.alone = reason_of(error)


def together(choices, numbers):
    """The action of several of `choices` at once: where one is named as all of them are ("RIGHT", "FIRE":
    "RIGHTFIRE"), that one; of controls each that is not at rest; else the last one's.
    """
    names = [choices[number][0] for number in numbers]
    named = dict(choices).get("".join(word for word in WORDS if word in names))
    if named is not None:
        return named
    actions = [choices[number][1] for number in numbers]
    if isinstance(actions[-1], int):
        return actions[-1]
    rest = choices[0][1]
    merged = list(rest)
    for action in actions:
        for i, value in enumerate(action):
            if value != rest[i]:
                merged[i] = value
    return merged


def choices(system, dataset):
    """[(name, action)] that a player is offered: every discrete action, or each control at both ends.

    Names are the recording's; of actions that a run invented, what report.json learned about them
    ("action_labels").
    """
    space, names = system.action_space, []
    if system.needs().actions:
        names = dataset.about.get("action_names", [])
    else:
        with contextlib.suppress(UserError):
            names = read_report(system.run.dir)["metrics"].get("action_labels", [])

    def named(i):
        return names[i] if i < len(names) else str(i)

    if isinstance(space, int):
        return [(named(i), i) for i in range(space)]
    ends = list(zip(*space, strict=True))
    # a control rests at 0, or else in the middle
    rest = [0.0 if low <= 0 <= high else (low + high) / 2 for low, high in ends]
    found = [("neutral", rest)]
    for i, pair in enumerate(ends):
        for end in pair:
            if end != rest[i]:  # a control that rests at one end has the other only
                found.append((f"{named(i)} {end:+.3g}", [*rest[:i], end, *rest[i + 1 :]]))
    return found
