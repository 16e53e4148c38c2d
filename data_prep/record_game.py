"""A game to a recording: frames, the actions between them, and all that is needed to play the same again.

    python data_prep/record_game.py --env ALE/Pong-v5 --steps 16000 --out pong.h5 [--format jsonl ...]

Row i holds what the player saw and the action that was taken there, so it leads to row i + 1. An episode
begins right at the game's reset, with a seed of its own: `make_env(about["env"], about["env_options"])`,
reset with `about["episode_seeds"][n]` and the recorded actions show the same frames again.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data_prep.games import action_facts, frame_of, game_options, make_env
from data_prep.picture import png_bytes
from data_prep.players import player
from mtld_core.chance import seed_of
from mtld_core.config import UserError
from mtld_core.files import atomic_path, write_json
from mtld_core.runtime import command, progress_bar

POLICIES = "random, sticky, lookahead or MODULE:FUNCTION; several (sticky,lookahead) take turns"
CHUNK = 2**19  # bytes of frames that HDF5 packs together: several fit into its cache of 1 MB
ATARI_FPS = 60


def record(
    env,
    steps,
    out,
    format="h5",
    size=64,
    seed=0,
    policy="sticky",
    repeat_probability=0.0,
    frameskip=4,
    episode_steps=500,
    progress=True,
):
    """Play `steps` steps of a Gymnasium environment into a recording; the same arguments give the same bytes.

    out: the folder to make; for "h5" also the name of the file (.h5), which is `<out>/recording.h5`
        otherwise.
    format: "h5", or "jsonl" (PNG files and a log). size: pixels of a side.
    policy: who plays, see `player`; several with commas between them take turns, an episode each.
    frameskip, repeat_probability: of the emulator; Atari only.
    episode_steps: a longer episode is ended there.

    Returns {"path", "frames", "episodes", "bytes", "copy_psnr": dB of each frame against the one before,
    errors pooled, None where no frame has one before it}. Raises UserError for a bad setting, a game that
    cannot be recorded, or where `out` is taken or too full a disk.
    """
    numbers = {"steps": steps, "size": size, "frameskip": frameskip, "episode_steps": episode_steps}
    _check_settings(numbers, repeat_probability, format)
    out = Path(out).expanduser().absolute()
    path = out / "recording.h5" if format == "h5" and out.suffix.lower() not in (".h5", ".hdf5") else out
    _check_room(path, steps * size * size * 3)
    options = game_options(env, frameskip, repeat_probability)
    with contextlib.closing(make_env(env, options)) as game:
        skip = options.get("frameskip", 1)
        fps = ATARI_FPS / skip if "frameskip" in options else game.metadata.get("render_fps") or 30
        about = {
            "env": env,
            "env_options": options,
            "frameskip": skip,
            "fps": fps,
            "size": size,
            "policy": policy,
            "seed": seed,
            "episode_steps": episode_steps,
            "episode_seeds": [],
            **action_facts(game),
        }
        write = {"h5": _h5, "jsonl": _jsonl}[format]
        bar = progress_bar(total=steps, desc=f"playing {env}", unit=" steps", disable=not progress)
        with bar, write(path, steps, about) as put:
            copy_psnr = _put_all(game, steps, about, put, bar)
    return {
        "path": path,
        "frames": steps,
        "episodes": len(about["episode_seeds"]),
        "bytes": _bytes_in(path),
        "copy_psnr": copy_psnr,
    }


def _put_all(game, steps, about, put, bar):
    """Play and `put` every step; returns `copy_psnr`, see `record`."""
    last_episode, last_frame = None, None
    error, pairs = 0.0, 0
    for row, (frame, action, episode) in enumerate(_play(game, steps, about)):
        put(row, frame, action, episode)
        if episode == last_episode:
            error += cv2.norm(frame, last_frame, cv2.NORM_L2SQR)
            pairs += 1
        last_episode, last_frame = episode, frame
        bar.update()
    if not pairs:
        return None
    mse = error / (pairs * frame.size * 255**2)
    return -10 * np.log10(max(mse, 1e-10))


def _check_settings(numbers, repeat_probability, format):
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"{name} must be 1 or more, not {value!r}")
    if not 0 <= repeat_probability < 1:
        raise UserError(f"repeat_probability must be from 0 to below 1, not {repeat_probability!r}")
    if format not in ("h5", "jsonl"):
        raise UserError(f"format must be 'h5' or 'jsonl', not {format!r}")


def _bytes_in(path):
    """What a file takes, or all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _check_room(path, needed):
    """Raise UserError where something is there already, or less room than `needed` bytes."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(
            f"{path} is there already and recordings are not overwritten: name another --out, or delete it"
        )
    folder = next(parent for parent in path.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{path}: the frames take up to {needed / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB of "
            "room: use fewer --steps, a smaller --size or another disk"
        )


# ---- playing


def _play(game, steps, about):
    """Yield (frame, action, episode) of `steps` steps; writes each episode's seed down in `about`."""
    rng = np.random.default_rng(seed_of("policy", about["seed"]))
    space, seeds, row = game.action_space, about["episode_seeds"], 0
    players = [player(policy, game, rng) for policy in about["policy"].split(",")]
    discrete = "bounds" not in about
    while row < steps:
        episode = len(seeds)
        seeds.append(seed_of("episode", about["seed"], episode) % 2**31)
        choose = players[episode % len(players)]
        observation, info = game.reset(seed=seeds[-1])
        for _ in range(min(about["episode_steps"], steps - row)):
            chosen = choose(observation, info, rng)
            action = _as_stored(chosen, space, discrete)
            if action is None:
                raise UserError(f"policy={about['policy']!r} chose {chosen!r}, which is no action of {space}")
            frame = frame_of(game, observation, about["size"])
            yield frame, action, episode
            row += 1
            taken = int(action) if discrete else action.astype(space.dtype)
            observation, _, terminated, truncated, info = game.step(taken)
            if terminated or truncated:
                break


def _as_stored(chosen, space, discrete):
    """An action as the recording holds it, so that a replay is exact; None where it is none of `space`."""
    try:
        action = np.asarray(chosen, None if discrete else np.float32)
    except (TypeError, ValueError):  # words, say
        return None
    whole = action.dtype.kind in "iu"
    fits = (whole or not discrete) and space.contains(action.astype(space.dtype))
    return action if fits else None


# ---- writing


@contextlib.contextmanager
def _h5(path, steps, about):
    """Yield put(row, frame, action, episode), which fills the HDF5 file `path`.

    The file takes its name when all is there.
    """
    shape = about["size"], about["size"], 3
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        chunks = (min(steps, 16, max(1, CHUNK // int(np.prod(shape)))), *shape)
        packed = {"compression": "gzip", "compression_opts": 1}
        frames = file.create_dataset("frames", (steps, *shape), np.uint8, chunks=chunks, **packed)
        actions, episodes = [], []

        def put(row, frame, action, episode):
            frames[row] = frame
            actions.append(action)
            episodes.append(episode)

        yield put
        file["actions"] = np.array(actions, np.float32 if "bounds" in about else np.int64)
        file["episode"] = np.array(episodes, np.int64)
        file.attrs["recording"] = json.dumps(about)


@contextlib.contextmanager
def _jsonl(path, steps, about):
    """Yield put(row, frame, action, episode), which fills the folder `path` with PNG files and a log.

    The folder takes its name when all is there. Reading a float back gives the same bits.
    """
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        (folder / "frames").mkdir(parents=True)
        with open(folder / "recording_log.jsonl", "w") as log:

            def put(row, frame, action, episode):
                name = f"frames/{row:06d}.png"
                (folder / name).write_bytes(png_bytes(frame))
                entry = {"frame_filename": name, "controls": action.tolist(), "episode": episode}
                if "bounds" not in about:
                    one_hot = [float(i == action) for i in range(len(about["action_names"]))]
                    entry |= {"controls": one_hot, "action": int(action)}
                log.write(json.dumps(entry | {"timestamp": row / about["fps"]}) + "\n")

            yield put
        write_json(folder / "recording.json", about)
        if path.exists():  # empty
            path.rmdir()
        folder.rename(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@command
def main():
    parser = argparse.ArgumentParser(
        description="Play a Gymnasium environment and record frames and actions."
    )
    parser.add_argument("--env", required=True, help="a Gymnasium id, such as ALE/Pong-v5")
    parser.add_argument("--steps", type=int, required=True, help="frames to record")
    parser.add_argument("--out", required=True, help="the folder to make, or a file (.h5)")
    parser.add_argument("--format", default="h5", help="h5 or jsonl")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", default="sticky", help=POLICIES)
    parser.add_argument(
        "--repeat-probability", type=float, default=0.0, help="that the game ignores an action"
    )
    parser.add_argument("--frameskip", type=int, default=4, help="screens a step; Atari only, as the former")
    parser.add_argument("--episode-steps", type=int, default=500, help="a longer episode is ended there")
    sys.path.append(os.getcwd())  # where --policy is looked for
    done = record(**vars(parser.parse_args()))
    line = f"{done['path']}: {done['frames']} frames in {done['episodes']} episodes, "
    line += f"{done['bytes'] / 1e6:.1f} MB"
    if done["copy_psnr"] is not None:
        line += f"; a copy of the frame before makes {done['copy_psnr']:.2f} dB"
    print(line)


if __name__ == "__main__":
    sys.exit(main())
