"""uint8 -> float -> uint8 loses nothing, and a picture comes out in the size that was asked for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtld_core.frames import evenly, fit_frame, rows_of, to_float, to_uint8


def all_values():
    """uint8 `[2, 16, 16, 3]` in which every channel takes every value."""
    ramp = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    return torch.stack([ramp, 255 - ramp, ramp.T], -1).expand(2, -1, -1, -1).contiguous()


def test_round_trip_is_exact_for_every_value():
    frames = all_values()
    assert all(len(channel.unique()) == 256 for channel in frames.unbind(-1))
    assert torch.equal(to_uint8(to_float(frames)), frames)


def test_the_range_is_minus_one_to_one_and_the_steps_are_even():
    x = to_float(torch.arange(256, dtype=torch.uint8).reshape(1, 256, 1).expand(1, 256, 3))[0, 0]
    assert x.dtype == torch.float32
    assert x.min().item() == pytest.approx(-1, abs=1e-6) and x.max().item() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(x, torch.linspace(-1, 1, 256), atol=1e-6)


@pytest.mark.parametrize("lead", [(), (2,), (2, 4)])
def test_axes(lead):
    frames = torch.randint(0, 256, (*lead, 5, 7, 3), dtype=torch.uint8)
    x = to_float(frames)
    assert x.shape == (*lead, 3, 5, 7)
    assert x.movedim(-3, -1).is_contiguous()  # the stored order is kept in memory: channels_last
    for c in range(3):
        assert torch.allclose(x[..., c, :, :], frames[..., c].float() / 127.5 - 1, atol=1e-6)
    back = to_uint8(x)
    assert back.is_contiguous() and torch.equal(back, frames)


def test_to_uint8_clips_rounds_and_takes_any_float_type_with_gradient():
    x = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).reshape(1, 1, 5).expand(3, 1, 5)
    assert to_uint8(x)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert to_uint8((100.6 / 127.5 - 1) * torch.ones(3, 1, 1)).unique().tolist() == [101]
    assert torch.equal(to_uint8(x.to(torch.bfloat16).requires_grad_()), to_uint8(x))


# ---- fit_frame


def quarters(h, w):
    """Four flat quarters with the colours red, green, blue, white, so that a wrong cut or a swapped axis
    shows.
    """
    frame = np.zeros((h, w, 3), np.uint8)
    frame[: h // 2, : w // 2, 0] = frame[: h // 2, w // 2 :, 1] = frame[h // 2 :, : w // 2, 2] = 250
    frame[h // 2 :, w // 2 :] = 250
    return frame


def test_nothing_to_do_keeps_the_frame():
    frame = quarters(6, 10)
    for height, width in ((0, 0), (6, 10)):
        assert np.array_equal(fit_frame(frame, height, width), frame)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(
    ("size", "asked"), [((40, 80), (20, 20)), ((80, 40), (20, 20)), ((10, 20), (64, 48)), ((33, 57), (17, 9))]
)
def test_the_quarters_stay_where_they_were(fit, size, asked):
    found = fit_frame(quarters(*size), *asked, fit)
    assert found.shape == (*asked, 3) and found.dtype == np.uint8 and found.flags.c_contiguous
    scale = min(asked[0] / size[0], asked[1] / size[1])
    height, width = (
        (scale * size[0], scale * size[1]) if fit == "pad" else asked
    )  # of the part that is no border
    y, x = (
        [round(asked[i] / 2 - side / 4 - 0.5), round(asked[i] / 2 + side / 4 - 0.5)]
        for i, side in enumerate((height, width))
    )
    corners = [found[i, j].astype(int) for i in y for j in x]  # the middle of each quarter
    wanted = [250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 250]
    for corner, colour in zip(corners, wanted, strict=True):
        assert np.abs(corner - colour).max() < 60


def test_crop_cuts_the_centre_and_keeps_the_aspect():
    frame = np.zeros((20, 60, 3), np.uint8)
    frame[:, 20:40] = 200  # the middle third is all that a square keeps
    for side in (10, 20, 40):
        found = fit_frame(frame, side, side, "crop")
        assert found[side // 4 : -side // 4, side // 4 : -side // 4].min() >= 199
        assert found.mean() > 190
    assert np.array_equal(fit_frame(frame, 20, 20, "crop"), frame[:, 20:40])
    assert np.array_equal(fit_frame(frame.swapaxes(0, 1), 20, 20, "crop"), frame.swapaxes(0, 1)[20:40])


def test_pad_shows_everything_between_black_bars():
    frame = np.full((20, 60, 3), 200, np.uint8)
    found = fit_frame(frame, 30, 30, "pad")
    assert (found[10:20] == 200).all() and not found[:10].any() and not found[20:].any()
    found = fit_frame(frame.swapaxes(0, 1), 60, 120, "pad")
    assert (found[:, 50:70] == 200).all() and not found[:, :50].any() and not found[:, 70:].any()


def test_stretch_fills_and_shows_everything():
    frame = np.full((20, 60, 3), 200, np.uint8)
    frame[:, :6] = 0
    found = fit_frame(frame, 30, 30, "stretch")
    assert (found[:, :3] == 0).all() and (found[:, 4:] == 200).all()


@pytest.mark.parametrize(
    ("size", "asked", "wanted"),
    [
        ((40, 80), (20, 0), (20, 40)),
        ((40, 80), (0, 20), (10, 20)),
        ((40, 80), (0, 160), (80, 160)),
        ((720, 1280), (90, 0), (90, 160)),
        ((3, 5), (0, 11), (6, 11)),  # 6.6 and
        ((101, 77), (51, 0), (51, 38)),  # 38.9 are rounded to even
        ((2, 200), (0, 10), (2, 10)),  # 0.1: never below 2
        ((10, 20), (0, 20), (10, 20)),
    ],
)
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_side_of_zero_follows_the_aspect(size, asked, wanted, fit):
    assert fit_frame(np.zeros((*size, 3), np.uint8), *asked, fit).shape == (*wanted, 3)


def test_shrinking_averages_areas():
    frame = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    means = frame.reshape(8, 4, 6, 4, 3).mean((1, 3))
    assert (
        np.abs(fit_frame(frame, 8, 6) - means).max() <= 0.51
    )  # picking or interpolating pixels is far from it


side = st.integers(1, 200)


@settings(max_examples=300, deadline=None)
@given(side, side, st.integers(0, 64), st.integers(0, 64), st.sampled_from(["crop", "pad", "stretch"]))
def test_the_shape_is_always_as_asked(h, w, height, width, fit):
    frame = np.random.default_rng(h * 256 + w).integers(0, 256, (h, w, 3), dtype=np.uint8)
    before = frame.copy()
    found = fit_frame(frame, height, width, fit)
    assert found.dtype == np.uint8 and np.array_equal(frame, before)
    if not height and not width:
        assert found.shape == frame.shape
    else:
        assert found.shape == (height or found.shape[0], width or found.shape[1], 3)
    if not height and width and (h, w) != found.shape[:2]:
        assert found.shape[0] % 2 == 0 and abs(found.shape[0] - width * h / w) <= 2
    if not width and height and (h, w) != found.shape[:2]:
        assert found.shape[1] % 2 == 0 and abs(found.shape[1] - height * w / h) <= 2


@settings(max_examples=60, deadline=None)
@given(
    side,
    side,
    st.integers(1, 64),
    st.integers(1, 64),
    st.sampled_from(["crop", "stretch"]),
    st.integers(0, 255),
)
def test_a_flat_picture_stays_flat(h, w, height, width, fit, grey):
    assert (fit_frame(np.full((h, w, 3), grey, np.uint8), height, width, fit) == grey).all()


def test_the_rows_of_windows_begin_at_their_first_one():
    starts = torch.tensor([0, 7])
    assert rows_of(starts, 3).tolist() == [[0, 1, 2], [7, 8, 9]]
    assert rows_of(starts, 2, first=4).tolist() == [[4, 5], [11, 12]] and rows_of(starts[:0], 2).shape == (
        0,
        2,
    )


def test_evenly_from_the_first_to_the_last():
    assert evenly(10, 4).tolist() == [0, 3, 6, 9] and evenly(3, 4).tolist() == [0, 1, 2]
    rows = torch.arange(10) ** 2
    assert evenly(rows, 4).equal(rows[evenly(10, 4)]) and evenly(rows, 10).equal(rows)
