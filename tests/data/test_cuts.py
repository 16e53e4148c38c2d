"""Hard cuts: found where shots join, not in pans, fades, flashes or animation on twos."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from mtld_core.data import find_cuts, open_dataset, thumbnail
from mtld_core.data.cuts import PIECE, cuts_of_arcs

CLIP = Path(__file__).parents[2] / "data_prep/sample/bigbuckbunny.mp4"


def texture(seed, height=64, width=400):
    """A smooth random picture, wide enough to pan over."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def pan(seed, count, speed=2):
    wide = texture(seed, width=64 + speed * count + 8)
    return [wide[:, speed * i : speed * i + 64] for i in range(count)]


def cuts(frames):
    return find_cuts(np.stack([thumbnail(frame) for frame in frames]))


def repeat(frames, times):
    return [frame for frame in frames for _ in range(times)]


@pytest.fixture(scope="module")
def clip():
    """Every frame of the bundled clip, uint8 RGB."""
    video, frames = cv2.VideoCapture(str(CLIP)), []
    while (found := video.read())[0]:
        frames.append(cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB))
    return frames


@pytest.mark.parametrize("speed", [1, 4, 8])
def test_joined_pans_are_cut_at_the_joints_only(speed):
    assert cuts(pan(1, 30, speed) + pan(2, 20, speed) + pan(3, 25, speed)) == [30, 50]


@pytest.mark.parametrize("times", [2, 3])
def test_repeated_frames_are_no_cuts(times):
    frames = repeat(pan(1, 16, 8), times) + repeat(pan(2, 16, 8), times)
    assert cuts(frames) == [16 * times]


def test_noise_and_motion_throughout_are_no_cuts():
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    for count in (2, 3, 4, 5, 8, 40):
        assert cuts(list(noise[:count])) == []
    assert cuts([texture(0)[:, :64]] * 10 + pan(0, 20, 16)) == [], "a pan that sets in"


@pytest.mark.parametrize("length", [1, 2])
def test_a_flash_is_no_cut(length):
    frames = pan(1, 40)
    for i in range(20, 20 + length):
        frames[i] = np.full_like(frames[i], 255)
    assert cuts(frames) == []


@pytest.mark.parametrize("length", [6, 12, 24])
def test_fades_are_no_cuts(length):
    a, b = pan(1, 20 + length), pan(2, 20 + length)
    mix = [
        (a[20 + i] * (1 - (i + 1) / (length + 1)) + b[i] * ((i + 1) / (length + 1))).astype(np.uint8)
        for i in range(length)
    ]
    assert cuts(a[:20] + mix + b[length:]) == []


def test_a_cut_beside_a_flash_and_cuts_close_together_are_found():
    frames = pan(1, 20) + pan(2, 5) + pan(3, 20)
    frames[30] = np.full_like(frames[30], 255)
    assert cuts(frames) == [20, 25]


def test_the_bundled_clip_is_one_shot(clip):
    assert len(clip) > 100
    assert cuts(clip) == []


def test_pieces_of_the_clip_are_cut_exactly_at_the_joints(clip):
    flipped = [frame[:, ::-1] for frame in clip[60:90]]
    closer = [frame[: frame.shape[0] // 2, : frame.shape[1] // 2] for frame in clip[30:60]]
    recoloured = [frame[..., ::-1] for frame in clip[90:110]]
    assert cuts(clip[:30] + closer + flipped + recoloured) == [30, 60, 90]


def test_reading_in_pieces_finds_the_same_as_at_once():
    frames = [f for s in range(12) for f in pan(s, 64)]
    assert PIECE in cuts(frames), "a joint lies on the border of two pieces"
    split = len(frames) - 100
    found = cuts_of_arcs(np.stack(frames), [(0, split), (split, len(frames))], workers=1)
    assert found.tolist() == cuts(frames[:split]) + [split + row for row in cuts(frames[split:])]


def test_thumbnails_average_areas():
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[::2] = 200
    assert thumbnail(frame).shape == (32, 32, 3)
    assert (thumbnail(frame) == 100).all()
    assert thumbnail(frame[:8, :8]).shape == (8, 8, 3)


def test_windows_keep_off_the_cuts(tmp_path):
    for i, frame in enumerate(pan(1, 12) + pan(2, 12)):
        path = tmp_path / f"d/a/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), frame)
    data = open_dataset(tmp_path / "d", progress=False, cache=False)
    assert data.cuts.tolist() == [12]
    assert data.windows(12).tolist() == [0, 12]
    assert data.windows(12, cross_cuts=True).tolist() == list(range(13))
