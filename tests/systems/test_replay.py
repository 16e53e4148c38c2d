"""A replay holds the newest transitions, and takes them back after a kill exactly as they were."""

import json
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import ToyConfig, ToyStage

from mtld_core.chance import keyed_uniform
from mtld_core.config import UserError
from mtld_core.data import open_dataset
from mtld_core.frames import to_float, to_uint8
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.systems.rl_v2v import replay as module
from mtld_core.systems.rl_v2v.replay import Replay
from mtld_core.train import fit
from mtld_core.train.settings import TrainConfig, build

ROOT = Path(__file__).parents[2]
SHAPE = (3, 4, 5, 3)  # two state frames and the action, of 4x5 pixels


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setattr(module, "SEGMENT", 5)


def transitions(first, count):
    """The arguments of `add` for the transitions with these numbers: each is known by every one of its
    parts.
    """
    numbers = torch.arange(first, first + count)
    frames = (numbers[:, None, None, None, None] * 7 + torch.arange(180).view(SHAPE)).to(torch.uint8)
    domains = (numbers % 2).to(torch.uint8)
    return frames, numbers * 0.5 - 100, numbers * 1000, domains, numbers % 3 == 0


def filled(folder, count, capacity=7, step=3):
    replay = Replay(folder, capacity, SHAPE)
    while replay.count < count:
        replay.add(*transitions(replay.count, min(step, count - replay.count)))
    return replay


def holds(replay, first, count):
    """Whether the replay holds the transitions with these numbers, oldest first, and nothing else."""
    assert (len(replay), replay.count) == (count, first + count)
    found = replay.take(torch.arange(first, first + count))
    wanted = dict(
        zip(("frames", "rewards", "positions", "domains", "done"), transitions(first, count), strict=True)
    )
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert torch.equal(found[name], values) and found[name].dtype == values.dtype, name
    return True


def segments(folder):
    return sorted(path.name for path in (folder / "replay").iterdir())


# ---- the ring


@pytest.mark.parametrize("step", [1, 2, 3, 7, 8, 20])
def test_it_holds_the_newest_however_they_came(tmp_path, step):
    replay = Replay(tmp_path, 7, SHAPE)
    assert len(replay) == replay.count == 0
    for first in range(0, 40, step):
        replay.add(*transitions(first, step))
        held = min(7, replay.count)
        assert holds(replay, replay.count - held, held)


def test_a_draw_is_of_one_domain_evenly_and_a_function_of_the_numbers_given(tmp_path):
    replay = filled(tmp_path, 12)  # 5 to 11 are there, and in pairs 6 to 11
    for domain in (0, 1):
        drawn = replay.draw(torch.tensor([0.0, 1 - 2**-24, 0.5, 0.5]), domain)
        assert drawn.tolist() == [6 + domain, 10 + domain, 8 + domain, 8 + domain]
        numbers = replay.draw(keyed_uniform(torch.arange(3000), "draw", 1)[:, 0], domain)
        found = replay.take(numbers)
        assert (found["domains"] == domain).all() and torch.equal(found["positions"], numbers * 1000)
        assert torch.bincount(numbers // 2)[3:].min() > 0.8 * 1000


def test_the_newest_are_each_samples_own(tmp_path):
    replay = filled(tmp_path, 12)
    assert replay.newest(torch.arange(2), 2, 0).tolist() == [8, 10]
    assert replay.newest(torch.arange(2), 2, 1).tolist() == [9, 11]
    assert replay.newest(torch.arange(5), 5, 1).tolist() == [7, 7, 7, 9, 11], "there are but three"


def test_what_is_drawn_is_a_copy(tmp_path):
    replay = filled(tmp_path, 5)
    replay.take(torch.arange(5))["frames"].zero_()
    assert holds(replay, 0, 5)


@pytest.mark.parametrize("size", [2, 3])
def test_a_replay_that_came_domain_by_domain_is_brought_into_turns(tmp_path, size):
    """As runs of before have it: a batch's transitions of X, then those of Y."""
    replay = Replay(tmp_path, 7, SHAPE)
    frames, rewards, positions, _, done = transitions(0, 4 * size)
    domains = torch.arange(4 * size) // size % 2
    replay.add(frames, rewards, positions, domains, done)
    replay.files()
    before = {path: path.read_bytes() for path in (tmp_path / "replay").iterdir()}
    again = Replay(tmp_path, 7, SHAPE)
    again.load(replay.state(), tmp_path)
    found = again.take(torch.arange(again.count - len(again), again.count))
    assert found["domains"].tolist() == [0, 1] * (len(again) // 2)
    newest = domains[-7:]
    assert len(again) == 2 * min((newest == 0).sum(), (newest == 1).sum())
    for domain in (0, 1):  # the newest of each, in their order
        there = positions[domains == domain].tolist()
        here = found["positions"][found["domains"] == domain].tolist()
        assert here == there[len(there) - len(here) :]
    again.files()
    assert all(path.read_bytes() == data for path, data in before.items()), "a checkpoint rests on them"
    once_more = Replay(tmp_path, 7, SHAPE)
    once_more.load(again.state(), tmp_path)
    assert once_more.state() == again.state()
    assert all(torch.equal(x, y) for x, y in zip(held(once_more), held(again), strict=True))


def test_rewards_may_come_from_a_network(tmp_path):
    frames, rewards, *others = transitions(0, 3)
    replay = Replay(tmp_path, 7, SHAPE)
    replay.add(frames, rewards.bfloat16().requires_grad_(), *others)
    assert holds(replay, 0, 3)


def test_wrong_use_is_said_and_nothing_written(tmp_path):
    replay = Replay(tmp_path, 7, SHAPE)
    frames, *others = transitions(0, 3)
    with pytest.raises(RuntimeError, match="shape"):
        replay.add(frames[:, 1:], *others)
    assert not (tmp_path / "replay").exists()


def test_a_device_without_room_is_said(tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module.torch, "empty", full)
    with pytest.raises(UserError, match=r"replay_size=7: there is no room .* use fewer"):
        Replay(tmp_path, 7, SHAPE)


# ---- going on


@pytest.mark.parametrize("count", [0, 1, 5, 7, 12, 15, 23])
@pytest.mark.parametrize("more", [0, 1, 9])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, count, more):
    replay = filled(tmp_path, count)
    files, state = replay.files(), json.loads(json.dumps(replay.state()))
    before = {name: (tmp_path / name).read_bytes() for name in files}
    assert {name: len(data) for name, data in before.items()} == files
    replay.add(*transitions(count, more))
    replay.files()  # for a checkpoint that was never written
    assert all((tmp_path / name).read_bytes() == data for name, data in before.items()), "files never change"
    again = Replay(tmp_path, 7, SHAPE)
    again.load(state, tmp_path)
    assert again.files() == files and again.state() == state
    assert not count or holds(again, max(0, count - 7), min(7, count))
    again.add(*transitions(count, 11))
    straight = filled(tmp_path / "other", count)
    straight.files()
    straight.add(*transitions(count, 11))
    assert again.files() == straight.files() and again.state() == straight.state()
    assert holds(again, count + 4, 7) and holds(straight, count + 4, 7)
    for name in straight.files():
        assert (tmp_path / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_another_runs_replay_is_copied(tmp_path):
    first = filled(tmp_path / "first", 12)
    first.files()
    state = first.state()
    first.add(*transitions(12, 9))
    first.files()
    before = {path: path.read_bytes() for path in (tmp_path / "first/replay").iterdir()}
    filled(tmp_path / "second", 33).files()  # what an earlier attempt left there
    second = Replay(tmp_path / "second", 7, SHAPE)
    second.load(state, tmp_path / "first")
    assert holds(second, 5, 7)
    files = second.files()
    assert all((tmp_path / "second" / name).stat().st_size == size for name, size in files.items())
    third = Replay(tmp_path / "second", 7, SHAPE)
    third.load(second.state(), tmp_path / "second")
    assert holds(third, 5, 7)
    second.add(*transitions(12, 9))
    assert holds(second, 14, 7)
    assert {path: path.read_bytes() for path in (tmp_path / "first/replay").iterdir()} == before


@pytest.mark.parametrize("capacity", [4, 20])
def test_another_capacity_takes_what_there_is(tmp_path, capacity):
    former = filled(tmp_path, 17)
    former.files()
    state = former.state()
    replay = Replay(tmp_path, capacity, SHAPE)
    replay.load(state, tmp_path)
    held = min(capacity, 7)
    assert holds(replay, 17 - held, held)
    replay.add(*transitions(17, 30))
    assert holds(replay, 47 - capacity, capacity)


@pytest.mark.parametrize("count", [3, 995, 1000, 2004])
def test_a_replay_of_before_is_read(tmp_path, count):
    """Files of 1,000 transitions, each with a checksum, behind a header of 28 bytes."""
    record = [
        ("frames", "u1", SHAPE),
        ("rewards", "<f4"),
        ("positions", "<i8"),
        ("domains", "u1"),
        ("done", "?"),
    ]
    rows = np.zeros(count, [*record, ("checksum", "<u4")])
    for (name, *_), values in zip(record, transitions(0, count), strict=True):
        rows[name] = values
    (tmp_path / "replay").mkdir()
    for begin in range(0, count + 5, 1000):  # what lies behind the checkpoint's last one was added later
        data = b"x" * 28 + rows[begin : begin + 1000].tobytes() + b"y" * (rows.itemsize * 5)
        (tmp_path / f"replay/{begin:012d}.bin").write_bytes(data)
    replay = Replay(tmp_path, 7, SHAPE)
    replay.load({"count": count, "first": max(0, count - 7)}, tmp_path)
    held = min(7, count)
    assert holds(replay, count - held, held)
    assert all(name.endswith(".npy") for name in replay.files())
    again = Replay(tmp_path, 7, SHAPE)
    again.load(replay.state(), tmp_path)
    assert holds(again, count - held, held)


# ---- damage


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (Path.unlink, "cannot be read (No such file or directory), and the checkpoint rests on it"),
        (cut, "is damaged: it does not match its sha256"),
        (flip, "is damaged: it does not match its sha256"),
        (lambda path: path.write_bytes(b""), "is damaged: it does not match its sha256"),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_damage_is_said_with_the_file_and_the_way_out(tmp_path, how, said, own):
    replay = filled(tmp_path / "run", 12)
    replay.files()
    state = replay.state()
    how(tmp_path / "run/replay/000000000005.npy")
    target = tmp_path / ("run" if own else "other")
    with pytest.raises(UserError) as error:
        Replay(target, 7, SHAPE).load(state, tmp_path / "run")
    assert "000000000005.npy" in str(error.value) and said in str(error.value)
    assert "copy the run's folder once more with all that is in it, or start in another run_dir" in str(
        error.value
    )


def test_a_full_disk_is_the_callers_to_hear_of(tmp_path):
    resource = pytest.importorskip("resource", reason="no such limits on Windows")
    replay = filled(tmp_path, 6)
    replay.files()
    state = replay.state()
    replay.add(*transitions(6, 4))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))  # no file larger than that can be written
    try:
        with pytest.raises(OSError, match="File too large"):
            replay.files()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = Replay(tmp_path, 7, SHAPE)
    again.load(state, tmp_path)
    assert holds(again, 0, 6)
    replay.files()  # once there is room
    again = Replay(tmp_path, 7, SHAPE)
    again.load(replay.state(), tmp_path)
    assert holds(again, 3, 7)


# ---- with checkpoints


def save(run, replay, step):
    files = replay.files()
    name = checkpoints.save(run, step, {"a": torch.zeros(2)}, {"extra": replay.state()}, {}, files=files)
    checkpoints.prune(run)
    return run / name


def test_segments_that_nothing_needs_go_and_checkpoints_stay_whole(tmp_path):
    replay = filled(tmp_path, 12)
    (tmp_path / "replay").mkdir()
    (tmp_path / "replay/notes.txt").write_text("mine")
    best = save(tmp_path, replay, 1)
    checkpoints.mark_best(tmp_path, f"checkpoints/{best.name}", "psnr", 1.0)
    for step in range(2, 9):
        replay.add(*transitions(replay.count, 6))
        save(tmp_path, replay, step)
    kept = checkpoints.list_checkpoints(tmp_path)
    assert [path.name for path in kept] == ["step_00000008", "step_00000007", "step_00000001"]
    assert all(checkpoints.problem(path, resuming=True) is None for path in kept)
    needed = [5, 7, 41, 42, 47, 48, 49]  # 5 to 11; 41 to 47, 47 to 53, cut where the ring ends
    assert segments(tmp_path) == [f"{n:012d}.npy" for n in needed] + ["notes.txt"]
    for path in kept:
        state = checkpoints.load_train_state(path)["extra"]
        again = Replay(tmp_path / "copy", 7, SHAPE)
        again.load(state, tmp_path)
        assert holds(again, state["first"], 7)


def test_a_checkpoint_does_not_grow_with_the_replay(tmp_path):
    replay, sizes = Replay(tmp_path, 1000, SHAPE), []
    for step, count in ((1, 3), (2, 900)):
        replay.add(*transitions(replay.count, count))
        folder = save(tmp_path, replay, step)
        sizes.append({path.name: path.stat().st_size for path in folder.iterdir()})
    assert sum((tmp_path / name).stat().st_size for name in replay.files()) > 170_000
    assert sizes[0].keys() == sizes[1].keys()
    for name, size in sizes[1].items():
        assert size - sizes[0][name] < 181 * (60 if name == "manifest.json" else 120), name


class Rehearsed(ToyStage):
    """Learns from frames of its replay, five new ones a step."""

    def setup_training(self, folder):
        self.replay = Replay(folder, 7, (2, self.config.height, self.config.width, 3))

    def training_step(self, batches, step):
        keys, count = batches[0]["key"], self.replay.count
        frames = to_uint8(batches[0]["frames"][:, :2])
        domains = torch.arange(count, count + len(keys)) % 2
        self.replay.add(frames, torch.zeros(len(keys)), keys, domains, False)
        numbers = self.replay.draw(keyed_uniform(keys, "replay", 1)[:, 0], 0)
        drawn = self.replay.take(numbers)
        return super().training_step([{"frames": to_float(drawn["frames"])}], step)

    def extra_state(self):
        return self.replay.state()

    def extra_files(self):
        return self.replay.files()

    def load_extra_state(self, state, folder):
        self.replay.load(state, folder)


def trained(folder, arcs, **settings):
    data = open_dataset(arcs, progress=False)
    config = TrainConfig(
        run_dir=str(folder), steps=20, batch_size=5, save_every_steps=4, eval_windows=4, threads=1, **settings
    )
    system = build(Rehearsed, ToyConfig(), data, 0)
    fit(system, data, config)
    return system


def held(replay):
    """All that a replay holds, oldest first, a list of tensors."""
    return list(replay.take(torch.arange(replay.count - len(replay), replay.count)).values())


def same(a, b):
    assert a.replay.state() == b.replay.state() and a.replay.files() == b.replay.files()
    assert all(torch.equal(x, y) for x, y in zip(held(a.replay), held(b.replay), strict=True))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    return True


def test_training_goes_on_exactly_with_its_replay(tmp_path, arcs, monkeypatch):
    straight = trained(tmp_path / "straight", arcs)
    assert straight.replay.count == 100

    def dying(self, batches, step, go_on=Rehearsed.training_step):
        logs = go_on(self, batches, step)
        if self.replay.count == 70:  # written, and no checkpoint knows of it
            raise KeyboardInterrupt
        return logs

    with monkeypatch.context() as patch:
        patch.setattr(Rehearsed, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed", arcs)
    copy = shutil.copytree(tmp_path / "killed", tmp_path / "copy")
    assert same(trained(tmp_path / "killed", arcs), straight)
    assert same(trained(tmp_path / "branch", arcs, resume=str(copy)), straight)
    kept = checkpoints.list_checkpoints(tmp_path / "killed")
    assert len(kept) >= 2 and all(checkpoints.problem(path, resuming=True) is None for path in kept)
    assert len(segments(tmp_path / "killed")) <= 2 * len(kept)


def test_a_run_without_its_replay_says_so(tmp_path, arcs, capsys):
    trained(tmp_path / "run", arcs)
    shutil.rmtree(tmp_path / "run/replay")
    with pytest.raises(UserError, match=r"every checkpoint of .* is damaged"):
        trained(tmp_path / "run", arcs)
    assert "replay/0000000000" in capsys.readouterr().out


# ---- what it costs


SIZE = r"""
    import re, sys, torch
    from mtld_core.systems.rl_v2v.replay import Replay

    def peak():  # not ru_maxrss, which a child has from its parent
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])

    frames = torch.ones(16, 4, 64, 64, 3, dtype=torch.uint8)
    zeros = torch.zeros(16, dtype=torch.long)
    began = peak()
    replay = Replay(sys.argv[1], 10_000, frames.shape[1:])
    replay.add(frames, zeros.float(), zeros, zeros, zeros.bool())
    empty = peak()
    while replay.count < 10_000:
        replay.add(frames, zeros.float(), zeros, zeros, zeros.bool())
    replay.take(torch.arange(16) * 600)
    print(began, empty, peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")
def test_ten_thousand_transitions_take_half_a_gigabyte(tmp_path):
    code = [sys.executable, "-c", textwrap.dedent(SIZE), str(tmp_path)]
    run = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=True)
    began, empty, full = map(int, run.stdout.split())
    assert empty - began < 20e6, "memory that is not used yet"
    assert full < 1.2e9 and full - began < 520e6  # the frames alone are 491.5e6


@pytest.mark.clocked
def test_adding_and_sampling_are_close_to_copying(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT", 1000)
    replay = Replay(tmp_path, 640, (4, 64, 64, 3))
    frames, numbers = torch.ones(32, 4, 64, 64, 3, dtype=torch.uint8), torch.arange(32) * 20
    zeros = torch.zeros(32, dtype=torch.long)

    def best(function):
        seconds = []
        for _ in range(20):
            began = time.perf_counter()
            function()
            seconds.append((time.perf_counter() - began) / 32)
        return min(seconds)

    assert (
        best(lambda: replay.add(frames, zeros.float(), zeros, zeros, zeros.bool())) < 500e-6
    )  # 40 us on an idle core
    assert best(lambda: replay.take(numbers)) < 100e-6  # 5 us
