"""Each figure against a computation by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

from mtld_core import metrics
from mtld_core.config import UserError


def frames(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_mse_by_hand():
    a, b = torch.zeros(2, 3, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, 3, 4, 4, 3, dtype=torch.uint8)
    b[1, 2, 0, 0, 0] = 51  # 0.2 on [0, 1], in one of 48 values
    found = metrics.mse(a, b)
    assert found.shape == (2, 3) and found.dtype == torch.float64
    assert found[1, 2].item() == pytest.approx(0.04 / 48, rel=1e-12) and found.count_nonzero() == 1
    assert metrics.mse(a.fill_(255), b.fill_(0)).unique().tolist() == [1.0]


def test_mse_broadcasts_and_takes_differences_below_zero():
    a, b = frames(2, 5, 6, 7, 3), frames(6, 7, 3, seed=1)
    wanted = ((a.numpy() / 255 - b.numpy() / 255) ** 2).mean((-3, -2, -1))
    np.testing.assert_allclose(metrics.mse(a, b), wanted, rtol=1e-12)
    assert torch.equal(metrics.mse(b, a), metrics.mse(a, b))


def test_psnr_in_db_and_its_floor():
    assert metrics.psnr(torch.tensor([1.0, 0.01, 0.0])).tolist() == pytest.approx([0, 20, 100])


def test_skill_compares_pooled_errors_with_the_best_baseline():
    model = torch.tensor([[0.01, 0.03]])
    good, bad = torch.tensor([[0.0, 0.4]]), torch.tensor([[0.5, 0.5]])
    assert metrics.skill_db([bad, good], model) == pytest.approx(
        10
    )  # 0.2 / 0.02, not the mean of two decibel figures
    assert metrics.skill_db([model], model) == 0
    assert math.isfinite(metrics.skill_db([good], torch.zeros(3)))


def ssim_by_hand(a, b):
    """The mean over the 11x11 windows (Gaussian, sigma 1.5) of grey `[H, W]` in [0, 1], mirrored at the
    border.
    """
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w, values = np.outer(g, g) / g.sum() ** 2, []
    windows = (
        np.lib.stride_tricks.sliding_window_view(np.pad(x, 5, mode="reflect"), (11, 11)) for x in (a, b)
    )
    for x, y in zip(*(part.reshape(-1, 11, 11) for part in windows), strict=True):
        mx, my = (w * x).sum(), (w * y).sum()
        vx, vy, cov = (w * x * x).sum() - mx**2, (w * y * y).sum() - my**2, (w * x * y).sum() - mx * my
        values.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return np.mean(values)


def test_ssim_by_hand():
    a, b = frames(12, 15, 3), frames(12, 15, 3, seed=1) // 4 + frames(12, 15, 3) // 2
    by_hand = [ssim_by_hand(a[..., c].numpy() / 255, b[..., c].numpy() / 255) for c in range(3)]
    assert 0.5 < np.mean(by_hand) < 0.95
    assert metrics.ssim(a, b).item() == pytest.approx(np.mean(by_hand), abs=1e-6)


def test_ssim_of_equal_flat_and_unlike_frames():
    a = frames(2, 3, 16, 20, 3)
    assert metrics.ssim(a, a).tolist() == [pytest.approx([1, 1, 1])] * 2
    black, grey = torch.zeros(16, 16, 3, dtype=torch.uint8), torch.full((16, 16, 3), 51, dtype=torch.uint8)
    assert metrics.ssim(black, grey).item() == pytest.approx(
        1e-4 / (0.04 + 1e-4), rel=1e-3
    )  # flat: luminance alone
    assert metrics.ssim(a, frames(2, 3, 16, 20, 3, seed=1)).abs().max() < 0.3


@pytest.mark.parametrize("height, width", [(1, 1), (4, 30), (8, 8), (10, 11)])
def test_ssim_of_frames_smaller_than_its_window(height, width):
    a, b = frames(3, height, width, 3), frames(3, height, width, 3, seed=1)
    assert metrics.ssim(a, a).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert metrics.ssim(a, b).isfinite().all() and (metrics.ssim(a, b) < 0.9).all()


def ms_ssim_by_hand(a, b, exponents):
    """Of `[H, W, 3]` in [0, 1]: contrast and structure where the window fits on each scale, and on the last
    one with luminance, mirrored at the border.
    """
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w, value = np.outer(g, g) / g.sum() ** 2, 1.0
    for i, exponent in enumerate(exponents):
        x, y = (
            np.lib.stride_tricks.sliding_window_view(
                np.pad(z, ((5, 5), (5, 5), (0, 0)), "reflect"), (11, 11), (0, 1)
            )
            for z in (a, b)
        )
        mx, my, xx, yy, xy = (np.einsum("hwcij,ij->hwc", z, w) for z in (x, y, x * x, y * y, x * y))
        likeness = (2 * (xy - mx * my) + 9e-4) / (xx - mx**2 + yy - my**2 + 9e-4)
        if i == len(exponents) - 1:
            likeness *= (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
        else:
            likeness = likeness[5:-5, 5:-5]  # as in the paper; torchmetrics mirrors in SSIM alone
        value *= likeness.mean() ** exponent
        a, b = (
            z[: len(z) // 2 * 2, : z.shape[1] // 2 * 2]
            .reshape(len(z) // 2, 2, z.shape[1] // 2, 2, 3)
            .mean((1, 3))
            for z in (a, b)
        )
    return value


@pytest.mark.parametrize("height, width, scales", [(176, 181, 5), (120, 99, 4), (64, 64, 3), (30, 22, 2)])
def test_ms_ssim_by_hand(height, width, scales):
    """With as many scales as the window fits into; their exponents still sum up to 1."""
    a = frames(height, width, 3)
    b = (0.7 * a.float() + 0.3 * frames(height, width, 3, seed=1).float()).byte()
    exponents = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    wanted = ms_ssim_by_hand(a.numpy() / 255, b.numpy() / 255, exponents / exponents.sum())
    assert metrics.ms_ssim(a, b).item() == pytest.approx(wanted, abs=1e-5) and 0.5 < wanted < 0.99
    assert metrics.ms_ssim(a, a).item() == pytest.approx(1)


def test_ms_ssim_of_every_size():
    for side in (1, 8, 21, 22, 43, 98, 175):
        a, b = frames(2, side, side, 3), frames(2, side, side, 3, seed=1)
        found = metrics.ms_ssim(a, b)
        assert found.shape == (2,) and found.isfinite().all() and (found < 0.9).all()
        assert metrics.ms_ssim(a, a).tolist() == pytest.approx([1, 1], abs=1e-5)
        if side < 22:
            torch.testing.assert_close(found, metrics.ssim(a, b).relu())


def test_pieces_do_not_change_a_figure():
    a, b = frames(metrics.PIECE + 3, 16, 16, 3), frames(metrics.PIECE + 3, 16, 16, 3, seed=1)
    one_by_one = torch.stack([metrics.ssim(x, y) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(metrics.ssim(a, b), one_by_one)


def random_trunk():
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    return {f"features.{name}": value for name, value in make_layers(cfgs["D"]).state_dict().items()}


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    """The metric with a trunk of random weights: VGG's own file is a download."""
    file = tmp_path_factory.mktemp("trunk") / "vgg.pth"
    torch.save(random_trunk(), file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "get_dir", lambda: str(file.parent))
        return metrics.lpips_metric("cpu", str(file))[0]


@pytest.mark.parametrize("size", [8, 31, 32, 40])
def test_lpips_of_small_and_odd_frames(lpips, size):
    a, b = frames(2, 1, size, size + 3, 3), frames(2, 1, size, size + 3, 3, seed=1)
    assert lpips(a, b).shape == (2, 1) and lpips(a, a).tolist() == [[0], [0]]
    assert (lpips(a, b) > 0).all()


@pytest.mark.filterwarnings("ignore:.*:UserWarning:torchvision")
def test_lpips_is_the_packages_own_figure(lpips):
    import lpips as package

    reference = package.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    convolutions = [layer for part in range(1, 6) for layer in getattr(reference.net, f"slice{part}")]
    with torch.no_grad():
        targets = [p for layer in convolutions for p in layer.parameters()]
        for target, value in zip(targets, random_trunk().values(), strict=True):
            target.copy_(value)
        a, b = frames(2, 48, 64, 3), frames(2, 48, 64, 3, seed=1)
        wanted = reference(*(x.movedim(-1, 1) / 127.5 - 1 for x in (a, b))).flatten()
    torch.testing.assert_close(lpips(a, b), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:torchvision")
def test_lpips_of_alexnet_is_the_packages_own_figure(monkeypatch, tmp_path):
    """From the name under which data_prep/convert_lpips.py keeps it in torch's cache."""
    import lpips as package

    reference = package.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    trunk = {f"features.{name.split('.', 1)[1]}": p for name, p in reference.net.state_dict().items()}
    (tmp_path / "checkpoints").mkdir()
    torch.save(trunk, tmp_path / "checkpoints/lpips_alexnet.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    ours, reason = metrics.lpips_metric("cpu", network="alex")
    a, b = frames(2, 48, 64, 3), frames(2, 48, 64, 3, seed=1)
    with torch.no_grad():
        wanted = reference(*(x.movedim(-1, 1) / 127.5 - 1 for x in (a, b))).flatten()
    assert reason is None and (wanted > 0.01).all()
    torch.testing.assert_close(ours(a, b), wanted, rtol=1e-4, atol=1e-6)
    assert ours(a[:, :9], b[:, :9]).shape == (2,)  # enlarged as for VGG
    (tmp_path / "checkpoints/lpips_alexnet.pth").unlink()
    assert metrics.lpips_metric("cpu", network="alex") == (
        None,
        "AlexNet's weights (alexnet-owt-7be5be79.pth) are not on this machine",
    )
    torch.save(trunk, tmp_path / "given.pth")
    with pytest.raises(UserError, match=r"lacks features.0.weight: not a VGG16 state dict"):
        metrics.lpips_metric("cpu", str(tmp_path / "given.pth"))


def test_without_weights_there_is_a_reason_and_no_download(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("downloaded"))
    metric, reason = metrics.lpips_metric("cpu")
    assert metric is None and "vgg16" in reason


def test_a_given_file_of_weights_is_used_whatever_the_cache_holds(lpips, monkeypatch, tmp_path):
    from mtld_core.nn.perceptual import TRUNK_FILE

    given = random_trunk()
    torch.save(given, tmp_path / "given.pth")
    (tmp_path / "checkpoints").mkdir()
    torch.save({name: 0.5 * value for name, value in given.items()}, tmp_path / "checkpoints" / TRUNK_FILE)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    a, b = frames(1, 32, 32, 3), frames(1, 32, 32, 3, seed=1)
    assert torch.equal(metrics.lpips_metric("cpu", str(tmp_path / "given.pth"))[0](a, b), lpips(a, b))
    with pytest.raises(UserError, match=r"lpips_weights='.*none\.pth': no such file"):
        metrics.lpips_metric("cpu", str(tmp_path / "none.pth"))


def test_without_the_package_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    assert metrics.lpips_metric("cpu") == (None, "the package lpips is not installed")


# ---- in time


def textured(height, width, seed=0):
    """A smooth pattern that flow can follow, uint8 `[height, width, 3]`."""
    coarse = torch.rand(1, 3, height // 6, width // 6, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return (fine.clamp(0, 1) * 215 + 20).byte().movedim(0, -1)


def test_what_moves_has_no_warping_error_and_what_flickers_has():
    scene = textured(72, 120)
    pans = torch.stack([scene[4:68, 2 * t : 2 * t + 64] for t in range(6)])
    bright = pans[:1].int() + torch.tensor([0, 15, 0, 15, 0, 15])[:, None, None, None]
    still = pans[:1].expand_as(pans)
    error = metrics.warping_error(torch.stack([pans, bright.byte(), still]))
    assert error.shape == torch.Size([3]) and error[2] < 1e-9
    assert error[1].item() == pytest.approx((15 / 255) ** 2, rel=0.02)  # by hand
    moved = metrics.mse(pans[1:], pans[:-1]).mean()
    assert error[0] < 0.02 * moved and error[0] < 0.2 * error[1] < moved
    assert metrics.warping_error(pans[:1]) == 0
    pieces = torch.stack([pans, bright.byte()]).view(2, 1, 6, 64, 64, 3)
    assert torch.equal(metrics.warping_error(pieces), error[:2].view(2, 1))


def test_warping_error_by_hand():
    """With OpenCV's own remap, a pixel at a time where it matters: what a square covers is left out."""
    import cv2

    from mtld_core.nn.flow import optical_flow

    clip = textured(64, 64).repeat(4, 1, 1, 1)
    for t in range(4):
        clip[t, 20:44, 8 + 5 * t : 32 + 5 * t] = textured(24, 24, seed=1)
    y, x = np.mgrid[:64, :64].astype(np.float32)
    total, count, all_of_them = 0.0, 0, 0.0
    for a, b in itertools.pairwise(clip):
        f, g = optical_flow(a[None], b[None])[0].numpy(), optical_flow(b[None], a[None])[0].numpy()
        u, v = x + f[..., 0], y + f[..., 1]
        back = cv2.remap(g, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        warped = cv2.remap(
            b.numpy() / np.float32(255), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        squares = ((warped - a.numpy() / 255) ** 2).mean(-1)
        all_of_them += squares.sum()
        for i in range(64):
            for j in range(64):
                apart = np.sum((f[i, j] + back[i, j]) ** 2)
                limit = 0.01 * (np.sum(f[i, j] ** 2) + np.sum(back[i, j] ** 2)) + 0.5
                if apart < limit and -0.5 < u[i, j] < 63.5 and -0.5 < v[i, j] < 63.5:
                    total, count = total + squares[i, j], count + 1
    found = metrics.warping_error(clip).item()
    assert found == pytest.approx(total / count, rel=0.02)  # remap places pixels by 32nds
    assert 0.8 < count / (3 * 64 * 64) < 0.99 and found < 0.7 * all_of_them / (3 * 64 * 64)


def test_an_interval_of_a_mean():
    """Against scipy's own bootstrap."""
    from scipy.stats import bootstrap

    values = torch.randn(200, generator=torch.Generator().manual_seed(1)).double() + 20
    low, high = metrics.interval(values)
    other = bootstrap((values.numpy(),), np.mean, method="percentile", n_resamples=4000)
    error = other.standard_error
    assert low == pytest.approx(other.confidence_interval.low, abs=0.25 * error)
    assert high == pytest.approx(other.confidence_interval.high, abs=0.25 * error)
    torch.manual_seed(5)  # no matter what was drawn before
    assert metrics.interval(values) == [low, high]
    assert metrics.interval(values[:, None].expand(200, 3).float()) == pytest.approx([low, high])
    few_low, few_high = metrics.interval(values[:8])
    assert few_high - few_low > 2 * (high - low)
    with pytest.raises(ValueError, match="needs two windows or more, not 1"):
        metrics.interval(values[:1])
