"""Each figure against a computation by hand."""

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
