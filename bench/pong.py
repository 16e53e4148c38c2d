"""The steered systems on Atari Pong from start to finish: record, train, and judge on held-out episodes.

python bench/pong.py OUT                         all of it, into OUT: an hour on two cores
python bench/pong.py OUT --only tinydreams       one stage: tinydreams, tokenizer, latent_actions, dynamics
python bench/pong.py OUT --vary output residual direct --train-steps 600 --seeds 0 1
                                                 tinydreams with each value of one setting in turn, in equal
                                                 steps
python bench/pong.py RUN --judge                 a trained run: is it Pong still after 1,000 and 10,000 steps?
"""

import argparse
import collections
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import dreams
from dreams import Court, dream, middle, rebounds, told

from data_prep.games import frame_of, make_env
from data_prep.record_game import record
from mtld_core.data import open_dataset
from mtld_core.frames import evenly, to_float, to_uint8
from mtld_core.judge.rollouts import Judge
from mtld_core.judge.windows import windows_of
from mtld_core.media import save_picture, strip
from mtld_core.runtime import command
from mtld_core.systems.base import Reconstructs
from mtld_core.systems.opening import open_run, own_dataset
from mtld_core.train import train

STAGES = ("tinydreams", "tokenizer", "latent_actions", "dynamics")
UP, DOWN = 2, 3  # Pong calls them RIGHT and LEFT
FIELD = slice(11, 58)  # rows of a 64x64 frame between the two white borders
PADDLE = slice(54, 60)  # columns of the player's paddle
MIDDLE = range(24, 44)  # rows from which it can move 4 frames either way without touching a border
BETWEEN = slice(10, 60)  # columns where the ball is seen: the enemy's paddle is somewhat white, too
BROWN, BALL = (144, 17), (236, 236)  # red and blue of the field and of the ball
WHITE = 0.27  # of the way from field to ball: what is more is ball
COURT = Court(
    turns={"top": (0, 12, -1), "bottom": (0, 57, 1), "left": (1, 10.2, -1), "right": (1, 55.8, 1)},
    reach=3,
    whole=(14, 54),
    seen=((FIELD.start, FIELD.stop), (BETWEEN.start, BETWEEN.stop)),
)
HELD = 4  # frames
SERVED = 40  # frames of an episode before the game has settled: the picture flickers, then the ball is served
LATE = (1000, 10_000)  # steps of a dream whose last hundred are judged
SHOWN = (1, 4, 16, 64)  # horizons


def paddle_row(frames, least=200):
    """Row of the centre of the player's (green) paddle: uint8 frames `[..., 64, 64, 3]` -> float `[...]`, nan
    where none is.

    least: of green, summed; a whole paddle has some 400, the empty field 0, so that a dream's faint one is
    found with less.
    """
    part = frames[..., FIELD, PADDLE, :].float()
    green = (
        (part[..., 1] - part[..., 0]).clamp(min=0).sum(-1)
    )  # [..., rows]; nothing else there is greener than red
    return middle(green, FIELD.start, least)


def enemy_row(frames, least=60):
    """Row of the centre of the enemy's (orange) paddle, as `paddle_row`."""
    part = frames[..., FIELD, 4:9, :].float()
    orange = (part[..., 0] - 170).clamp(min=0) * (part[..., 2] < 150)
    return middle(orange.sum(-1), FIELD.start, least)


def ball_place(frames):
    """(row, column) of the ball between the paddles: uint8 `[..., 64, 64, 3]` -> float `[..., 2]`, nan where
    none is.
    """
    brown, ball = torch.tensor(BROWN), torch.tensor(BALL)
    white = ((frames[..., FIELD, BETWEEN, ::2] - brown) / (ball - brown)).amin(-1)
    white = (white - WHITE).clamp(min=0)
    rows, columns = white.sum(-1), white.sum(-2)
    return torch.stack([middle(rows, FIELD.start), middle(columns, BETWEEN.start)], -1)


def paddles(clip):
    """Where both paddles are in a clip `[T, 64, 64, 3]`, as `approaches` wants it."""
    return {"left": enemy_row(clip), "right": paddle_row(clip, least=60)}


def goes_where_told(system, dreamt, tries=200):
    """As `obedience`, from where dreams stand: (share of tries, tries), up and down in turn.

    Held for 4 frames from mid-field, the real game's paddle goes where it is told (in 262 of 262 tries).
    """

    def row(frames):
        return paddle_row(frames, least=60)

    return told(system, dreamt, {UP: -1, DOWN: 1}, row, MIDDLE, HELD, tries)


def lasting(frames, dataset):
    """What is left of the game in dreamt frames `[B, T, 64, 64, 3]`: `dreams.lasting`, and two figures more.

    "ball": share of frames that show one between the paddles, and "real_ball", that of the recording. Of the
    recording count the frames after the serve.
    """
    clips = [dataset.frames[arc.start + SERVED : arc.stop] for arc in dataset.arcs]
    balls = {"ball": ball_share(frames), "real_ball": ball_share(torch.cat(clips))}
    return dreams.lasting(frames, clips) | balls


def ball_share(frames):
    """Share of frames `[..., 64, 64, 3]` that show a ball between the paddles."""
    return ball_place(frames).isfinite().all(-1).double().mean().item()


def judge(run, count, recording=""):
    """Print whether so many dreams of a run are Pong still, late in them; and whether its ball turns.

    recording: that they begin in and are compared with; "": the run's own, which of a shared run is short.
    """
    system = open_run(run, device="cpu")
    dataset = open_dataset(recording) if recording else own_dataset(system)
    late = collections.deque(maxlen=dreams.LATE)
    for step, seen in enumerate(dream(system, dataset, max(LATE), count), 1):
        late.append(seen)
        if step in LATE:
            figures = lasting(torch.stack([frames for _, frames in late], 1), dataset)
            words = (
                "static {static:.1f} dB, motion {motion:.2f}, ball in {ball:.0%} (recording {real_ball:.0%})"
            )
            obeyed, tries = goes_where_told(system, late)
            print(f"steps {step - dreams.LATE} to {step}: {words.format(**figures)}", flush=True)
            print(f"the paddle obeys in {obeyed:.1%} of {tries} tries", flush=True)
    found = collections.defaultdict(list)
    for name, _, dreamt in rebounds(system, dataset, sys.modules[__name__]):
        found[name].append(dreamt)
    shares = ", ".join(f"{name} {sum(turned)} of {len(turned)}" for name, turned in found.items())
    print(f"the ball turns where the recorded one did: {shares}")


def held_out(system, dataset):
    """The arcs that a run was judged on."""
    starts = windows_of(system, dataset)[1]
    return [arc for arc in dataset.arcs if ((starts >= arc.start) & (starts < arc.stop)).any()]


def obedience(system, dataset, arcs, tries=200):
    """Share of tries in which the dream's paddle, held up or down for 4 frames from mid-field, goes where the
    real one goes.

    The real game is put into the same state by the recorded actions, and tried from there.
    """
    game, k, cases = make_env(dataset.about["env"], dataset.about["env_options"]), system.needs().context, []
    for arc in arcs:
        game.reset(seed=dataset.about["episode_seeds"][int(arc.name.split("_")[1])])
        for t, row in enumerate(range(arc.start, arc.stop)):
            if t >= k - 1 and paddle_row(dataset.frames[row]).round().item() in MIDDLE:
                for action in (UP, DOWN):
                    state = game.unwrapped.clone_state(include_rng=True)
                    seen = [frame_of(game, game.step(action)[0], dataset.about["size"]) for _ in range(HELD)]
                    real = paddle_row(torch.from_numpy(np.stack(seen))) - paddle_row(dataset.frames[row])
                    last = real.isfinite().nonzero()[-1].item()  # it may leave the field on the way
                    cases.append((row, action, last, real[last]))
                    game.unwrapped.restore_state(state)
            game.step(int(dataset.actions[row]))
    rows, actions, last, real = (evenly(torch.tensor(column), tries) for column in zip(*cases, strict=True))
    context = to_float(dataset.frames[rows[:, None] + torch.arange(1 - k, 1)])
    with torch.inference_mode():
        frames = torch.cat(list(system.rollout(context, HELD, [actions] * HELD)), 1)[
            torch.arange(len(rows)), last
        ]
    dreamt = paddle_row(to_uint8(frames), least=60) - paddle_row(dataset.frames[rows])
    return (torch.sign(dreamt) == torch.sign(real)).float().mean().item(), len(rows)


def motion(dataset, arcs):
    """(rows, 0 up, 1 none or 2 down): how the player's paddle moves from each row to the next, where it is
    seen.
    """
    found = []
    for arc in arcs:
        moved = paddle_row(dataset.frames[arc.start : arc.stop]).diff()
        rows = torch.arange(arc.start, arc.stop - 1)[moved.isfinite()]
        found.append(
            (rows, (moved[moved.isfinite()] > 0.5).long() * 2 + (moved[moved.isfinite()].abs() <= 0.5).long())
        )
    return tuple(map(torch.cat, zip(*found, strict=True)))


def codes_at(system, dataset, arcs):
    """int64 `[N]`: the latent action from each row of the arcs to the next, -1 elsewhere; whole arcs are
    encoded in pieces.
    """
    codes, piece = torch.full((len(dataset.frames),), -1), 64
    with torch.inference_mode():
        for arc in arcs:
            for start in range(arc.start, arc.stop - 1, piece):
                first = max(arc.start, start - system.config.context_frames)
                stop = min(arc.stop, start + piece + 1)
                found = system.infer_actions(to_float(dataset.frames[first:stop])[None])[0]
                codes[start : stop - 1] = found[start - first :]
    return codes


def motion_accuracy(system, dataset):
    """Balanced accuracy of a linear map from latent action (one-hot) to the paddle's motion, fitted on the
    training part.
    """
    judged = held_out(system, dataset)
    learned = [arc for arc in dataset.arcs if arc not in judged]
    tables = []
    for arcs in (learned[:: max(1, len(learned) // 8)], judged):
        codes, (rows, moved) = codes_at(system, dataset, arcs), motion(dataset, arcs)
        counts = torch.bincount(moved * system.action_space + codes[rows], minlength=3 * system.action_space)
        table = counts.view(3, -1).float()
        tables.append(table / table.sum(1, keepdim=True).clamp(min=1))
    best = tables[0].argmax(0)  # each code's likeliest motion, all motions weighing the same
    return sum(tables[1][c][best == c].sum().item() for c in range(3)) / 3


def sheet(system, dataset, arcs, clips=4):
    """A picture: what really came beside what was dreamt under the same actions, at horizons 1, 4, 16 and
    64.
    """
    k, rows = system.needs().context, []
    places = evenly(torch.cat([dataset.arc_windows(arc, k + max(SHOWN)) for arc in arcs]), clips + 2)[1:-1]
    judge = Judge(dataset, places, system.needs(), max(SHOWN), dataset.frames[::50])
    truth, dreamt = judge.truth(places), judge.made_by(system, places, max(SHOWN))
    for clip in range(clips):
        rows += [frames[clip, [h - 1 for h in SHOWN]] for frames in (truth, dreamt)]
    return strip(rows, ["truth", "dream"] * clips, [f"+{h}" for h in SHOWN])


def run_stage(name, data, run_dir, overrides, **settings):
    """Train a stage's preset `small` into `run_dir`, and print how long it took and what its figures are."""
    began = time.process_time()
    report = train(name, "small", data, {"eval_every_steps": 0} | overrides, run_dir=str(run_dir), **settings)
    took = time.process_time() - began
    print(
        f"{run_dir.name}: {report['train_seconds']:.0f} s of training, {took:.0f} s of processor time in all"
    )
    print(json.dumps({k: v for k, v in report["metrics"].items() if isinstance(v, float)}, indent=1))
    if skills := report["metrics"].get("skill_db_by_horizon"):
        shown = [f"{h}: {skills[h - 1]:+.2f}" for h in (1, 2, 4, 8, 16, 32, 64) if h <= len(skills)]
        print("skill by horizon:", ", ".join(shown))
        print(f"least skill to horizon 16: {min(skills[:16]):+.2f} dB")
    dataset, system = open_dataset(data), open_run(run_dir, device="cpu")
    if system.action_space == 6:
        print(
            "the paddle obeys in {:.1%} of {} tries".format(
                *obedience(system, dataset, held_out(system, dataset))
            )
        )
    sys.stdout.flush()
    return system, dataset


def vary(out, data, setting, values, steps, seeds):
    """TinyDreams with each of `values` (texts, read as JSON where they are that) of one setting, seed by
    seed.
    """
    for seed in seeds:
        for text in values:
            try:
                value = json.loads(text)
            except ValueError:
                value = text
            run_stage(
                "tinydreams", data, out / f"{setting}_{text}_{seed}", {setting: value}, steps=steps, seed=seed
            )


def recorded(out, steps, seed):
    """The recording in `out`, made where it is not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    data = out / "pong.h5"
    if not data.exists():
        record("ALE/Pong-v5", steps, data, seed=seed)
    return data


def train_stages(out, data, only, minutes):
    stages = {"dynamics": {"tokenizer_run": str(out / "tokenizer")}}
    for name in only:
        settings = {"time_budget_minutes": minutes} if minutes else {}
        system, dataset = run_stage(name, data, out / name, stages.get(name, {}), **settings)
        if not isinstance(system, Reconstructs):
            save_picture(out / f"{name}_sheet.png", sheet(system, dataset, held_out(system, dataset)))
        if name == "latent_actions":
            print(
                f"latent action -> paddle motion: balanced accuracy {motion_accuracy(system, dataset):.1%} "
                "(chance 33 %)"
            )


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a folder to train into; with --judge, a run")
    parser.add_argument("--judge", action="store_true")
    parser.add_argument(
        "--recording", default="", help="that --judge compares with, in place of the run's own"
    )
    parser.add_argument("--dreams", type=int, default=8, help="that --judge looks at")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument(
        "--minutes", type=float, default=0, help="a stage; 0: as many steps as the preset says"
    )
    parser.add_argument("--steps", type=int, default=16_000, help="to record")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--vary", nargs="+", metavar=("SETTING", "VALUE"), help="a setting of tinydreams and its values"
    )
    parser.add_argument("--train-steps", type=int, default=600, help="of each run that --vary makes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the runs that --vary makes")
    given = parser.parse_args()
    if given.vary and len(given.vary) < 2:
        parser.error("--vary takes a setting and one or more values")
    if given.judge:
        judge(given.out, given.dreams, given.recording)
        return
    data = recorded(given.out, given.steps, given.seed)
    if given.vary:
        vary(given.out, data, given.vary[0], given.vary[1:], given.train_steps, given.seeds)
    else:
        train_stages(given.out, data, given.only, given.minutes)


if __name__ == "__main__":
    sys.exit(main())
