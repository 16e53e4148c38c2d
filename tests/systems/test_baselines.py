"""Baselines: the contract that models keep, and clips of which it is known what they must make."""

import time

import numpy as np
import pytest
import torch
from conftest import moving_square

from mtld_core import metrics
from mtld_core.config import ConfigError, UserError
from mtld_core.data import Arc, Dataset
from mtld_core.frames import evenly, to_float, to_uint8
from mtld_core.judge.task import JudgeConfig, Task
from mtld_core.nn.flow import pushed
from mtld_core.systems import SYSTEMS
from mtld_core.systems.base import System
from mtld_core.systems.baselines import BASELINES, SAMPLE, fit_baseline

NAMES = list(BASELINES)
every = pytest.mark.parametrize("name", NAMES)
LENGTH, SIZE = 6, 16


def dataset(clips):
    """A dataset with an arc for each clip uint8 `[n, H, W, 3]`."""
    frames = torch.cat([torch.as_tensor(clip) for clip in clips])
    arcs, start = [], 0
    for i, clip in enumerate(clips):
        arcs.append(Arc(f"arc_{i}", start, start + len(clip), np.arange(len(clip))))
        start += len(clip)
    return Dataset("/data", "arcs", frames, arcs, np.array([], np.int64))


def squares():
    """Six arcs of 16 frames; windows of the first five are learned."""
    data = dataset([moving_square(16, seed=i, height=SIZE, width=SIZE) for i in range(6)])
    return data, data.windows(LENGTH)[: 5 * (16 - LENGTH + 1)]


def fitted(name):
    return fit_baseline(name, *squares(), LENGTH)


@torch.inference_mode()
def rolled(system, context, steps):
    """Frames of a rollout, uint8 `[B, steps, H, W, 3]`."""
    return to_uint8(torch.cat(list(system.rollout(context, steps)), 1))


# ---- the contract


def test_they_are_known_by_name_and_nobody_trains_them():
    assert NAMES == ["copy_last", "median", "linear", "optical_flow", "nearest"]
    assert not set(NAMES) & set(SYSTEMS)
    with pytest.raises(UserError, match="no baseline 'optical_flaw'; did you mean 'optical_flow'"):
        fit_baseline("optical_flaw", *squares(), LENGTH)


@every
def test_start_step_and_rollout_agree_and_a_batch_is_its_members(name):
    system, (data, _) = fitted(name), squares()
    assert isinstance(system, System) and not system.training and system.name == name
    assert system.needs().window == LENGTH and not system.needs().actions and system.action_space is None
    context = to_float(torch.stack([data.frames[r : r + 3] for r in (80, 84, 90)]))  # of the last arc
    pieces = list(system.rollout(context, 5))
    assert [piece.shape for piece in pieces] == [(3, 1, 3, SIZE, SIZE)] * 5
    made = torch.cat(pieces, 1)
    assert made.dtype == torch.float32 and made.abs().max() <= 1
    state, stepped = system.start(context), []
    for _ in range(5):
        state, frame = system.step(state, action=torch.zeros(3, dtype=torch.int64))  # which none heeds
        stepped.append(frame)
    assert torch.equal(torch.stack(stepped, 1), made)
    alone = torch.cat([torch.cat(list(system.rollout(one[None], 5)), 1) for one in context])
    assert torch.equal(alone, made)
    assert torch.equal(torch.cat(list(system.rollout(to_uint8(context), 5)), 1), made)


@every
def test_what_does_not_fit_is_said(name):
    system = fitted(name)
    with pytest.raises(ConfigError, match="this run was trained on 16x16"):
        system.start(torch.zeros(1, 3, 3, 16, 20))
    with pytest.raises(ConfigError, match="cannot start from noise"):
        system.start(None)
    if system.needs().context == 2:
        with pytest.raises(ConfigError, match="needs 2 context frames, not 1"):
            system.start(torch.zeros(1, 1, 3, SIZE, SIZE))


@pytest.mark.clocked
@every
def test_a_frame_takes_a_constant_time(name):
    """A late frame takes no longer than an early one; both in turn, as the machine's speed changes."""
    system, (data, _) = fitted(name), squares()
    late = early = system.start(data.frames[80:82][None])
    for _ in range(160):
        late, _ = system.step(late)

    def seconds(state):
        began = time.perf_counter()
        state, _ = system.step(state)
        return state, time.perf_counter() - began

    ratios = []
    for _ in range(80):
        early, first = seconds(early)
        late, last = seconds(late)
        ratios.append(last / first)
    assert np.median(ratios) < 1.5


@every
def test_only_training_frames_are_looked_at(name):
    """All others are noise in one dataset and black in the other."""
    data, learned = squares()
    learned = learned[(learned >= 16) & (learned < 64)]  # windows of three arcs, and what lies between
    rows = torch.unique(learned[:, None] + torch.arange(LENGTH))
    made = []
    for filler in (torch.zeros_like(data.frames), torch.randint_like(data.frames, 256)):
        filler[rows] = data.frames[rows]
        system = fit_baseline(name, dataset([filler[i : i + 16] for i in range(0, 96, 16)]), learned, LENGTH)
        made.append(rolled(system, data.frames[80:83][None], 20))
    assert torch.equal(*made)


def test_it_fits_what_a_task_learns_from(monkeypatch):
    """The median frame is the judge's own, to the bit."""
    monkeypatch.setattr(metrics, "lpips_metric", lambda *_: (None, "dear"))
    monkeypatch.setattr(metrics, "ssim", metrics.mse)  # no less
    data, _ = squares()
    system = fit_baseline("copy_last", data, torch.arange(1), LENGTH)
    task = Task(system, data, JudgeConfig())
    median = fit_baseline("median", data, task.learned[0], LENGTH)
    assert torch.equal(median.frame, task.judge.median)
    by_hand = np.median(data.frames[evenly(task.rows[0], SAMPLE)].numpy(), 0).astype(np.uint8)
    assert np.array_equal(median.frame, by_hand)
    figures = {name: task.judge(fit_baseline(name, data, task.learned[0], LENGTH)) for name in NAMES[:2]}
    assert figures["copy_last"]["psnr"] == figures["copy_last"]["baseline_copy_psnr"]
    assert figures["median"]["psnr"] == figures["median"]["baseline_median_psnr"]


# ---- what is known


def moving(speed, count, size=64, side=8):
    """A square on a grey ground that moves right: uint8 `[count, size, size, 3]`."""
    frames = torch.full((count, size, size, 3), 60, dtype=torch.uint8)
    for t, frame in enumerate(frames):
        left = 6 + round(speed * t)
        frame[20 : 20 + side, left : left + side] = torch.tensor([220, 180, 90], dtype=torch.uint8)
    return frames


def psnr_of(name, clip, steps=8):
    data = dataset([clip, clip])
    system = fit_baseline(name, data, torch.tensor([0]), 4)
    return metrics.psnr(metrics.mse(rolled(system, clip[None, :2], steps)[0], clip[2 : 2 + steps]))


def test_a_square_that_moves_goes_on_moving():
    clip = moving(2, 10)
    found = {name: psnr_of(name, clip) for name in ("optical_flow", "linear", "copy_last")}
    assert (found["optical_flow"] > 10 + torch.maximum(found["linear"], found["copy_last"])).all()
    assert found["optical_flow"][0] > 60 and found["optical_flow"].min() > 35


@pytest.mark.parametrize("size, side", [(8, 4), (12, 4), (24, 6), (200, 20)])
def test_flow_of_small_and_large_frames(size, side):
    clip = moving(1, 4, size, side)[:, 18:] if size > 30 else moving(1, 4, size + 30, side)[:, 18 : 18 + size]
    clip = clip[:, :, :size].contiguous()
    found = {name: psnr_of(name, clip, 2) for name in ("optical_flow", "copy_last")}
    assert (found["optical_flow"] > found["copy_last"]).all()


def test_pixels_are_pushed_by_hand():
    """By half a pixel they are shared by two; the fast one covers the slow one; a hole takes what is around."""
    row = torch.tensor([10, 10, 200, 10, 10, 10, 10, 10], dtype=torch.uint8)
    frame, flow = row[None, None, :, None].expand(1, 8, 8, 3).contiguous(), torch.zeros(1, 8, 8, 2)
    assert torch.equal(pushed(frame, flow), frame)
    flow[:, :, 2, 0] = 3
    made = pushed(frame, flow)[0]
    assert (made[2:6, 5] > 190).all() and (made[2:6, [0, 1, 2, 3, 4, 6, 7]] == 10).all()
    flow[..., 0] = 0.5
    assert (pushed(frame, flow)[0, 2:6, 2:4] == 105).all()
    flow[..., 0] = 5
    assert (pushed(frame, flow)[0, 2:6, [5, 6]] == 10).all() and (pushed(frame, flow)[0, 2:6, 7] > 190).all()
    flow[..., 0] = 99
    assert torch.equal(pushed(frame, flow), frame)


def test_a_fade_goes_on_until_it_is_black():
    levels = torch.arange(200, -1, -20, dtype=torch.uint8)  # 200, 180, ..., 0
    clip = levels[:, None, None, None].expand(-1, 16, 16, 3).contiguous()
    made = rolled(fit_baseline("linear", dataset([clip]), torch.tensor([0]), 3), clip[None, :2], 12)[0]
    assert torch.equal(made[:9], clip[2:]) and not made[9:].any()


def test_a_training_window_is_found_and_replayed():
    data, learned = squares()
    system = fit_baseline("nearest", data, learned, LENGTH)
    for row in (0, 21, 64):
        made = rolled(system, data.frames[row : row + 2][None], 20)[0]
        stop = row // 16 * 16 + 16
        assert torch.equal(made[: stop - row - 2], data.frames[row + 2 : stop])
        assert (made[stop - row - 2 :] == data.frames[stop - 1]).all()  # at an arc's end the last frame stays
    noisy = data.frames[21:23].int() + torch.randint(-9, 10, (2, SIZE, SIZE, 3))
    assert torch.equal(rolled(system, noisy.clamp(0, 255).byte()[None], 4)[0], data.frames[23:27])


def test_the_nearest_is_exact_to_one_level_and_searched_in_pieces(monkeypatch):
    from mtld_core.systems import baselines

    frames = torch.full((40, SIZE, SIZE, 3), 255, dtype=torch.uint8)
    frames[:, 0, 0, 0] = torch.arange(40) * 3
    data = dataset([frames])
    near = fit_baseline("nearest", data, torch.arange(36), 5)
    assert torch.equal(rolled(near, frames[None, 30:32], 3)[0], frames[32:35])
    off = frames[30:32].clone()
    off[:, 0, 0, 0] += 2  # so that the next one, a level away, is nearer
    assert torch.equal(rolled(near, off[None], 3)[0], frames[33:36])
    monkeypatch.setattr(baselines, "SEARCHED", 1)
    assert torch.equal(rolled(near, off[None], 3)[0], frames[33:36])
