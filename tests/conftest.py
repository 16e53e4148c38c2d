import contextlib
import gc
import importlib
import os
from fractions import Fraction
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image

from mtld_core import config, pages
from mtld_core.config import ConfigError
from mtld_core.judge import frechet
from mtld_core.pages import png_bytes
from mtld_core.train import loop, plots

# files that take minutes, the longest first: one of them at the end would leave a core with nothing to do
LONG = [
    "systems/test_contract",
    "kaggle/test_kaggle_kernel",
    "systems/test_world_model",
    "train/test_train",
    "systems/test_replays",
    "train/test_together",
    "test_gpu_check",
    "play/test_pong",
    "test_bad_input",
    "systems/test_mtld",
    "systems/test_rl_v2v",
    "systems/test_weight_rnn",
    "systems/test_tinydreams",
]


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.relative_to(Path(__file__).parent).with_suffix("").as_posix()
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=place)


def pytest_collection_finish():
    """The garbage collector leaves alone what is imported by now: each run calls it twice, and to look through
    half a million objects took a fifth of a short run's time.
    """
    importlib.import_module("torchmetrics")  # and with it scipy, sympy and torch's compiler
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # or triton complains at exit that its things were never freed


@pytest.fixture(scope="session", autouse=True)
def small_networks(tmp_path_factory):
    """Runs are judged without large networks, which took most of the tests' time.

    For the Frechet distance coarse pixels stand in for EfficientNet; tests/judge/test_frechet.py keeps the
    true function. LPIPS finds no VGG16 in torch's cache, as on a machine that never had it; tests that are
    about LPIPS name a file.
    """

    def seen(frames):
        return F.adaptive_avg_pool2d(frames.cpu().movedim(-1, 1) / 255, 4).flatten(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
        patch.setattr(frechet, "frechet_features", lambda device: (seen, None))
        patch.setitem(frechet.KINDS, frechet.PICTURES, lambda device: (seen, None))
        yield


@pytest.fixture(scope="session", autouse=True)
def blank_plots():
    """The plots of a run are blank, which took a third of a short run's time. `drawn` has them drawn."""
    blank = png_bytes(np.zeros((1, 1, 3), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw", "draw_judgement"):
            patch.setattr(loop, name, lambda figures: blank)
        yield


@contextlib.contextmanager
def drawn():
    """Runs in here have their plots."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw", "draw_judgement"):
            patch.setattr(loop, name, getattr(plots, name))
        yield


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    """Decoded frames are cached in a folder of the test's own."""
    monkeypatch.setenv("MTLD_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch):
    """A test finds nothing that happens to lie in this clone, a developer's own runs, say."""
    monkeypatch.setattr(config, "places", places := [])
    monkeypatch.setattr(pages, "places", places)


def shown(frame):
    """uint8 `[H, W, 3]` of a decoded `av.VideoFrame`. Its colours are told, for PyAV 15 takes untold ones for
    BT.601.
    """
    from av.video.reformatter import Colorspace

    told = {"src_colorspace": int(frame.colorspace), "src_color_range": int(frame.color_range)}
    return frame.reformat(format="rgb24", dst_colorspace=Colorspace.DEFAULT, **told).to_ndarray()


def write_video(path, frames, rate=10, times=None, **options):
    """H.264, with keyframes every 8 frames; times: presentation times in 1/1000 s (else evenly at `rate`)."""
    import av

    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "4", "g": "8", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        if times:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_matrix(source, path, a, b, c, d):
    """A copy of an mp4 file whose pixels (x, y) are to be shown at (a x + c y, b x + d y), but for a
    shift.
    """
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    for i, value in enumerate([a, b, 0, c, d, 0]):
        data[at + 4 * i : at + 4 * i + 4] = round(0x10000 * value).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path


def moving_square(count, height=16, width=16, seed=0):
    """uint8 `[count, height, width, 3]`: a bright square that moves over a gradient, one pixel a frame,
    without a jump.
    """
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 120, width, dtype=np.uint8)[None, :, None] + np.zeros((height, 1, 3), np.uint8)
    frames, (y, x), span = [], rng.integers(0, 4, 2), 6
    for t in range(count):
        frame = ramp.copy()
        place = (x + t) % (2 * (width - span))
        place = min(place, 2 * (width - span) - place)  # back and forth
        frame[y : y + span, place : place + span] = (250, 200, 40 * seed % 250)
        frames.append(frame)
    return np.stack(frames)


def write_arcs(root, lengths, height=16, width=16):
    """`<root>/arc_<i>/frame_0000.png ...` with `lengths[i]` frames each; returns root."""
    for i, length in enumerate(lengths):
        folder = root / f"arc_{i}"
        folder.mkdir(parents=True)
        for t, frame in enumerate(moving_square(length, height, width, seed=i)):
            Image.fromarray(frame).save(folder / f"frame_{t:04d}.png")
    return root


@pytest.fixture
def arcs(tmp_path):
    """Six arcs of 20 frames of 16x16: five to learn from and one to judge."""
    return write_arcs(tmp_path / "arcs", [20] * 6)


def assert_each_matters(traces, overrides):
    """Without any one of the settings `traces`, a function of (name, value) pairs, gives something else.

    One without which the others are refused is passed over.
    """
    found = traces(tuple(overrides.items()))
    for out in overrides:
        try:
            other = traces(tuple((name, value) for name, value in overrides.items() if name != out))
        except ConfigError:
            continue
        assert other != found, out
