"""How far frames are from the truth: MSE, PSNR, skill over baselines, SSIM, LPIPS; what holds from frame to
frame: flicker, warping error; how sure a mean is; a transfer of colours.

Frames are uint8 tensors `[..., H, W, 3]`. Unless a docstring says otherwise, a figure is one number a frame,
on pixels in [0, 1]. torchmetrics is imported where it is needed, for that takes seconds.
"""

import functools
import importlib.util
import math

import torch
import torch.nn.functional as F

from mtld_core.nn.flow import optical_flow, places, pulled
from mtld_core.nn.perceptual import LPIPS, TRUNKS, find_trunk, load_trunk

LEAST_MSE = 1e-10  # PSNR ends at 100 dB
SSIM_WINDOW = 11  # pixels
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents of MS-SSIM, the finest scale first
SCALES_FROM = (0, 22, 44, 99, 176)  # pixels of the shorter side from which there are so many scales
LPIPS_LEAST = 32  # pixels a side
PIECE = 8  # pairs of pictures that go through VGG at once, which bounds the memory
RESAMPLED = 1000  # times, for an interval
COLOUR_PIXELS = 2_000_000  # that a colour transfer looks at, at most


def mse(a, b):
    """Mean squared error of frames: uint8 `[..., H, W, 3]` twice (leading axes broadcast) -> float64 `[...]`.

    The squares are summed as integers, so the figure is exact and the same on every device.
    """
    squares = (a.int() - b.int()).square_()
    count = math.prod(squares.shape[-3:])
    return squares.sum((-3, -2, -1)).double() / (255**2 * count)


def psnr(mse):
    """Peak signal-to-noise ratio in dB of each in a tensor of MSEs, 100 dB at most."""
    return -10 * torch.log10(mse.clamp(min=LEAST_MSE))


def mean_psnr(mse):
    """PSNR in dB averaged over frames, a float. mse: a tensor with the MSE of each frame."""
    return psnr(mse).mean().item()


def in_pieces(function, size, tick, *tensors):
    """Call `function` with `size` rows of each tensor at a time, and join the results along the first axis.

    tick: called before each piece; it may raise to give the work up.
    """
    results = []
    for pieces in zip(*(tensor.split(size) for tensor in tensors), strict=True):
        tick()
        results.append(function(*pieces))
    return torch.cat(results)


def error_picture(made, truth):
    """Four times the absolute difference of two frames or clips, to look at: all uint8 `[..., H, W, 3]`."""
    return ((made.int() - truth.int()).abs() * 4).clamp_(max=255).to(torch.uint8)


def flicker(frames):
    """How much flickers from frame to frame: clips uint8 `[..., T, H, W, 3]` -> float64 `[...]`, one a clip.

    It is the mean absolute second difference in time, in levels of 255: a steady change of brightness or a
    fade does not raise it. 0 for T < 3.
    """
    if frames.shape[-4] < 3:
        return torch.zeros(frames.shape[:-4], dtype=torch.float64)
    second_difference = frames.int().diff(n=2, dim=-4)
    return second_difference.abs().double().mean((-4, -3, -2, -1))


def warping_error(clips):
    """How much changes that is not motion: clips uint8 `[..., T, H, W, 3]` -> float32 `[...]`, one a clip.

    After Lai et al. 2018: each frame is compared with the next one, pulled back along the optical flow
    between the two. It is the mean squared difference, on pixels in [0, 1], over those that are seen in both:
    where the flow there and the one back do not cancel out (Sundaram et al. 2010) or leave the frame, a pixel
    is left out. A clip that stands still has 0: so compare with the truth's own. 0 for T < 2.
    """
    errors = []
    for clip in clips.cpu().reshape(-1, *clips.shape[-4:]):
        before, after = clip[:-1], clip[1:]
        there = optical_flow(before, after)
        back = pulled(optical_flow(after, before), there)
        lengths = there.square().sum(-1) + back.square().sum(-1)
        seen = (there + back).square().sum(-1) < 0.01 * lengths + 0.5
        seen &= (places(there).abs() < 1).all(-1)
        squares = (pulled(after / 255, there) - before / 255).square().mean(-1)
        errors.append((squares * seen).sum() / seen.sum().clamp(min=1))
    return torch.stack(errors).reshape(clips.shape[:-4])


def interval(windows):
    """How sure the mean of a figure over windows is: [low, high], floats, by the bootstrap.

    windows: float `[n, ...]`, a row for each. Means are taken of n rows at a time, drawn with replacement,
    the same in every call: low and high are the 2.5th and the 97.5th percentile of a thousand such means
    (Efron 1979). Windows that overlap, or come from one episode, are less sure than that; so are few: of
    eight, the true mean of Gaussian figures is outside in 10 % of all cases instead of 5 %, of four in 20 %.
    Raises ValueError for fewer than two.
    """
    n = len(windows)
    if n < 2:
        raise ValueError(f"an interval needs two windows or more, not {n}")
    drawn = torch.randint(n, (RESAMPLED, n), generator=torch.Generator().manual_seed(0))
    means = windows.double().reshape(n, -1).mean(1)[drawn].mean(1)
    return means.quantile(torch.tensor([0.025, 0.975]).double()).tolist()


def skill_db(baselines, model):
    """10 log10(MSE of the best baseline / MSE of the model) in dB, a float: 0 is as good as that baseline.

    baselines: a list of MSE tensors. model: one such tensor. Each is averaged over all its elements first.
    """
    best = min(baseline.mean().item() for baseline in baselines)
    return 10 * math.log10(max(best, LEAST_MSE) / max(model.mean().item(), LEAST_MSE))


def ssim(a, b):
    """Structural similarity of frames: uint8 `[..., H, W, 3]` twice -> float32 `[...]`, 1 for equal frames.

    After Wang et al. 2004, with a Gaussian window of 11 pixels. A frame smaller than the window is continued
    by its border pixels up to the window's size.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as similarity

    of_each = functools.partial(similarity, data_range=1.0, reduction="none")
    return _of_pairs(of_each, _continued, a, b)


def ms_ssim(a, b):
    """SSIM on several scales: uint8 `[..., H, W, 3]` twice -> float32 `[...]`, 1 for equal frames.

    After Wang et al. 2003: five scales from 176 pixels of the shorter side on. SSIM's window does not fit
    into the coarse scales of smaller frames, which are left out: four scales from 99 pixels on, three from
    44, two from 22, below that one, whose exponents are divided by their sum. So compare figures at equal
    frame sizes only. A scale without likeness counts as 0.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as similarity

    exponents = SCALES[: sum(min(a.shape[-3:-1]) >= side for side in SCALES_FROM)]
    exponents = tuple(exponent / sum(exponents) for exponent in exponents)
    on_scales = functools.partial(similarity, data_range=1.0, reduction="none", betas=exponents)
    return _of_pairs(on_scales, _continued, a, b)


def _continued(pictures):
    return up_to_window(pictures.double())  # float32 loses the variance of flat areas


def up_to_window(pictures):
    """Continue pictures float `[N, C, H, W]` by their border pixels up to the size of SSIM's window."""
    height, width = pictures.shape[-2:]
    pad = (0, max(0, SSIM_WINDOW - width), 0, max(0, SSIM_WINDOW - height))
    return F.pad(pictures, pad, mode="replicate")


def lpips_metric(device, weights="", network="vgg"):
    """Load LPIPS: (function, None), or (None, why not) where its package or weights are missing here.

    function: uint8 `[..., H, W, 3]` twice -> float32 `[...]`, 0 for equal frames. Frames with a side under 32
    pixels are enlarged (bilinear) until it has 32, for VGG halves them four times: compare such figures only
    at equal size. network: "vgg" (as in report.json) or "alex". weights: a file with the convolutions of
    VGG16 or AlexNet, "" to look for one in torch's cache; nothing is ever downloaded, but
    data_prep/convert_lpips.py makes both. Raises UserError where `weights` names no file.
    """
    if importlib.util.find_spec("lpips") is None:
        return None, "the package lpips is not installed"
    path, trunk = find_trunk(weights, network), TRUNKS[network]
    if path is None:
        return None, f"{trunk.name}'s weights ({trunk.files[0]}) are not on this machine"
    distance = LPIPS(load_trunk(path), network).to(device)

    def enlarged(x):
        x = 2 * x.to(device) - 1
        scale = LPIPS_LEAST / min(x.shape[-2:])
        if scale <= 1:
            return x
        size = [math.ceil(side * scale) for side in x.shape[-2:]]
        return F.interpolate(x, size, mode="bilinear")

    return lambda a, b: _of_pairs(distance, enlarged, a, b), None


@torch.inference_mode()
def _of_pairs(figure, prepare, a, b):
    """Measure pairs of frames, a few at a time: uint8 `[..., H, W, 3]` twice -> float32 `[...]` on the CPU.

    figure: two batches of pictures -> a number a pair. It gets what `prepare` makes of each batch, which is
    float `[n, 3, H, W]` in [0, 1].
    """

    def of_pieces(*pieces):
        return figure(*(prepare(piece.movedim(-1, -3) / 255) for piece in pieces)).float().cpu()

    pair = torch.broadcast_tensors(a, b)
    flat = [frames.reshape(-1, *frames.shape[-3:]) for frames in pair]
    return in_pieces(of_pieces, PIECE, lambda: None, *flat).reshape(pair[0].shape[:-3])


def colour_transfer(source, target):
    """Find the linear map of colours that gives `source` the mean and covariance of `target`.

    source, target: uint8 `[..., 3]`; of more than two million pixels every n-th counts. Returns (matrix
    `[3, 3]`, shift `[3]`), float64 in levels of 0..255. Of all such maps it is the one that moves colours
    least (Pitie and Kokaram 2007).
    """
    source, target = _colours(source), _colours(target)
    root, inverse = _roots(torch.cov(source.T))
    middle, _ = _roots(root @ torch.cov(target.T) @ root)
    matrix = inverse @ middle @ inverse
    return matrix, target.mean(0) - matrix @ source.mean(0)


def _colours(frames):
    pixels = frames.reshape(-1, 3)
    return pixels[:: math.ceil(len(pixels) / COLOUR_PIXELS)].double()


def _roots(covariance):
    """(the square root of a symmetric matrix, the inverse of that root: 0 in directions without variance)."""
    values, vectors = torch.linalg.eigh(covariance)
    roots = values.clamp(min=0).sqrt()
    inverses = torch.where(roots > 1e-6 * roots.max(), 1 / roots, 0)
    return (vectors * roots) @ vectors.T, (vectors * inverses) @ vectors.T
