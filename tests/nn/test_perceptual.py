"""LPIPS against the package's own forward pass, on a trunk of random weights, and where a trunk comes
from.
"""

import importlib.util
import urllib.error
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from mtld_core.config import UserError
from mtld_core.nn import perceptual
from mtld_core.nn.perceptual import CONVERTED_FILE, LPIPS, TRUNK_FILE, MapDistance, find_trunk, load_trunk

CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions in torchvision's `features`


@pytest.fixture(scope="module")
def trunk():
    """VGG16's convolutions with random weights (He et al. 2015, so that the last layers still see
    something).
    """
    generator = torch.Generator().manual_seed(0)
    weights, last = {}, 3
    for place, c in zip(PLACES, CHANNELS, strict=True):
        weight = torch.randn(c, last, 3, 3, generator=generator) * (2 / (9 * last)) ** 0.5
        weights |= {
            f"features.{place}.weight": weight,
            f"features.{place}.bias": 0.1 * torch.randn(c, generator=generator),
        }
        last = c
    return weights


@pytest.fixture(scope="module")
def network(trunk):
    return LPIPS(trunk)


@pytest.fixture(scope="module")
def package(trunk):
    """The package's own LPIPS around the same trunk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lpips

        own = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    layers = {
        name.split(".")[1]: layer for name, layer in own.net.named_modules() if isinstance(layer, nn.Conv2d)
    }
    assert sorted(map(int, layers)) == list(PLACES)
    for place, layer in layers.items():
        layer.load_state_dict({part: trunk[f"features.{place}.{part}"] for part in ("weight", "bias")})
    return own.eval()


def pictures(n, height, width, seed=0):
    return 2 * torch.rand(2, n, 3, height, width, generator=torch.Generator().manual_seed(seed)) - 1


# ---- the figure


@pytest.mark.parametrize(("n", "height", "width"), [(1, 32, 32), (3, 48, 32), (2, 37, 51), (2, 16, 16)])
def test_the_same_as_the_package(network, package, n, height, width):
    fake, real = pictures(n, height, width)
    with torch.no_grad():
        found, wanted = network(fake, real), package(fake, real).flatten()
    assert found.shape == (n,) and found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    assert wanted.min() > 1e-3


def test_the_gradient_is_the_packages_too(network, package):
    fake, real = pictures(2, 32, 32)
    fake.requires_grad_()
    (found,) = torch.autograd.grad(network(fake, real).sum(), fake)
    (wanted,) = torch.autograd.grad(package(fake, real).sum(), fake)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


def test_equal_pictures_are_at_zero_and_nearer_ones_nearer(network):
    real, noise = pictures(1, 32, 32)
    assert network(real, real).tolist() == [0]
    near, far = network(real + 0.05 * noise, real), network(real + 0.3 * noise, real)
    assert 0 < near.item() < far.item()


def test_each_picture_is_judged_on_its_own(network):
    fake, real = pictures(3, 32, 32)
    each = torch.cat([network(f[None], r[None]) for f, r in zip(fake, real, strict=True)])
    torch.testing.assert_close(network(fake, real), each, rtol=1e-5, atol=0)


def test_gradient_flows_to_the_fake_alone(network):
    fake, real = pictures(1, 32, 32).requires_grad_().unbind(0)
    fake.retain_grad()
    real.retain_grad()
    network(fake, real).sum().backward()
    assert fake.grad.abs().sum() > 0 and real.grad is None
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert not network.training


def test_dead_features_give_no_nan(trunk):
    """Where a layer answers 0 in all channels (flat frames), the length of its features has no slope."""
    weights = dict(trunk)
    weights["features.28.bias"] = torch.full((512,), -1e4)
    fake, real = pictures(1, 32, 32)
    fake.requires_grad_()
    distance = LPIPS(weights)(fake, real)
    distance.sum().backward()
    assert distance.item() > 0 and torch.isfinite(fake.grad).all()


def test_under_autocast_the_reduction_stays_in_fp32(network):
    fake, real = pictures(2, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(fake, real)
        assert all(m.dtype == torch.bfloat16 for m in network.features(fake))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, network(fake, real), rtol=0.05, atol=0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_nearly_dead_pixel_does_not_overflow_the_gradient(kind):
    """Features of a black border are nearly 0 in all channels, and their length is what the gradient is
    divided by.
    """
    real, fake = torch.rand(2, 1, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    fake[..., 0, 0] = 1e-7
    half, full = fake.to(kind).requires_grad_(), fake.to(kind).float().requires_grad_()
    for maps in (half, full):
        (100 * MapDistance.apply(maps, real.to(kind).to(maps.dtype), torch.ones(8))).sum().backward()
    assert half.grad.isfinite().all() and full.grad[..., 0, 0].abs().max() > 1e6
    alive = torch.tensor([[False, True], [True, True]])
    torch.testing.assert_close(half.grad.float()[..., alive], full.grad[..., alive], rtol=0.02, atol=0.5)


def test_in_fp64_all_of_it_is(trunk):
    network = LPIPS(trunk).double()
    fake, real = pictures(1, 32, 32).double()
    fake.requires_grad_()
    found = network(fake, real)
    (gradient,) = torch.autograd.grad(found.sum(), fake)
    change = 1e-6 * gradient / gradient.norm()
    slope = (network(fake + change, real) - network(fake - change, real)).item() / 2e-6
    assert found.dtype == torch.float64 and slope == pytest.approx(gradient.norm().item(), rel=1e-6)


# ---- where the trunk comes from


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's cache in an empty folder, and no network. Returns the path that a cached trunk has."""

    def offline(*arguments, **settings):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints" / TRUNK_FILE


def mark(number):
    return {"features.0.weight": torch.tensor([number])}


def test_without_any_trunk_the_three_ways_out_are_named(hub):
    assert find_trunk() is None
    with pytest.raises(UserError) as error:
        load_trunk()
    text = str(error.value)
    assert TRUNK_FILE in text and str(hub.parent) in text and "no route to host" in text
    assert (
        "convert_lpips.py" in text
        and "lpips_weights=" in text
        and 'perceptual="none"' in text
        and "\n" not in text
    )


def test_a_given_file_that_is_missing_is_an_error(hub, tmp_path):
    for ask in (find_trunk, load_trunk):
        with pytest.raises(UserError, match=r"lpips_weights='.*nowhere\.pth': no such file"):
            ask(str(tmp_path / "nowhere.pth"))


def test_the_given_file_comes_before_the_cache_and_that_before_a_download(hub, tmp_path, monkeypatch):
    calls = []

    def download(url, **settings):
        calls.append(url)
        torch.save(mark(3), hub)
        return mark(3)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    given = tmp_path / "given.pth"
    torch.save(mark(1), hub)
    torch.save(mark(2), given)
    assert find_trunk(str(given)) == given and load_trunk(str(given)) == mark(2)
    assert find_trunk() == hub and load_trunk() == mark(1)
    given.unlink()
    with pytest.raises(UserError, match=r"given\.pth': no such file"):  # and not the cache's in its place
        find_trunk(str(given))
    hub.unlink()
    assert calls == []
    assert load_trunk() == mark(3) and calls == [perceptual.TRUNK_URL] and find_trunk() == hub


def test_a_converted_file_in_the_cache_comes_second(hub):
    converted = hub.parent / CONVERTED_FILE
    for number, path in enumerate((hub, converted)):
        torch.save(mark(number), path)
    for number, path in enumerate((hub, converted)):
        assert find_trunk() == path and load_trunk() == mark(number)
        path.unlink()


def test_a_cached_trunk_is_loaded_and_used(hub, trunk, network):
    torch.save(
        trunk | {"classifier.0.weight": torch.zeros(2)}, hub
    )  # as torchvision's file, with more than is needed
    fake, real = pictures(1, 16, 16)
    assert torch.equal(LPIPS(load_trunk())(fake, real), network(fake, real))


@pytest.mark.parametrize("missing", ["features.0.weight", "features.28.bias"])
def test_a_wrong_file_names_the_missing_tensor(trunk, missing):
    with pytest.raises(UserError, match=f"lacks {missing}: not a VGG16 state dict"):
        LPIPS({name: value for name, value in trunk.items() if name != missing})


def test_a_file_that_is_no_state_dict_is_named(hub, tmp_path):
    path = tmp_path / "picture.pth"
    path.write_bytes(b"\x89PNG no weights at all")
    with pytest.raises(UserError, match=r"picture\.pth"):
        load_trunk(str(path))


def test_without_the_package_its_name_is_said(trunk, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lpips" else find(name, *rest)
    )
    with pytest.raises(UserError, match="lpips"):
        LPIPS(trunk)


def test_the_heads_are_those_that_the_package_ships(network):
    path = Path(importlib.util.find_spec("lpips").origin).parent / "weights/v0.1/vgg.pth"
    heads = torch.load(path, map_location="cpu", weights_only=True)
    assert [getattr(network, f"head{i}").shape[0] for i in range(5)] == [64, 128, 256, 512, 512]
    assert all(
        torch.equal(getattr(network, f"head{i}"), heads[f"lin{i}.model.1.weight"].flatten()) for i in range(5)
    )
