"""Two unpaired domains for a translator: `OUT/X/<arc>/frame_0000.png ...` and `OUT/Y/<arc>/`.

    python data_prep/make_domains.py OUT [--clips 40 --frames 24 --seed 0]    moving shapes, in two styles
    python data_prep/make_domains.py OUT --film SOURCE                        a film, and the same film graded
    python data_prep/make_domains.py OUT --film SOURCE --look night           some shots, and others by night
    python data_prep/make_domains.py OUT --x SOURCE --y SOURCE                videos or folders of arcs

All take --size, pixels of a side, which is 64 otherwise.

The first two know the right translation and write it beside the data, as `OUT/truth/X_in_Y/<arc>/` and
`OUT/truth/Y_in_X/<arc>/`: for judging, never for learning. OUT is written beside its place and renamed when
it is whole.
"""

import argparse
import functools
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data_prep.extract_frames import extract
from data_prep.picture import png_bytes
from mtld_core.chance import seed_of
from mtld_core.config import UserError, can_write
from mtld_core.data import open_dataset
from mtld_core.data.folder import SUFFIXES, VIDEO_SUFFIXES
from mtld_core.files import atomic_folder
from mtld_core.runtime import command

# part -> (colour, colour of its pattern), RGB in 0..1; the ground runs from the one to the other
X = {
    "ground": ((0.10, 0.14, 0.36), (0.22, 0.30, 0.56)),
    "disc": ((0.86, 0.22, 0.16), (0.86, 0.22, 0.16)),
    "box": ((0.94, 0.84, 0.28), (0.94, 0.84, 0.28)),
    "wedge": ((0.62, 0.92, 0.94), (0.62, 0.92, 0.94)),
}
GROUND = ((0.16, 0.30, 0.16), (0.40, 0.52, 0.24))
PINK = ((0.92, 0.40, 0.74), (0.60, 0.16, 0.50))
# palette -> Y. "crossed": of Y's parts X's disc lies nearest to the box in colour, its box to the wedge
PALETTES = {
    "easy": {
        "ground": GROUND,
        "disc": PINK,
        "box": ((0.98, 0.66, 0.20), (0.84, 0.40, 0.08)),
        "wedge": ((0.30, 0.78, 0.94), (0.30, 0.78, 0.94)),
    },
    "crossed": {
        "ground": GROUND,
        "disc": ((0.26, 0.46, 0.94), (0.14, 0.20, 0.60)),
        "box": PINK,
        "wedge": ((0.97, 0.90, 0.55), (0.97, 0.90, 0.55)),
    },
}
# radius over the picture's side: what tells them apart in either domain
PARTS = {"disc": 0.22, "box": 0.15, "wedge": 0.12}
PERIOD = 8  # pixels at 64, of the patterns
BLOCKS = 3  # of a film, for each domain
STEP = 1.2  # pixels a frame at 64, of the shapes
WAY = "make room there or name another folder"
LEAST_ARCS = 2  # of each domain by night, so that one can be held out
NIGHT = np.float32([0.70, 0.85, 1.15])  # of red, green and blue
LAMP = np.float32([1.6, 1.1, 0.5])
# of the graded film: what lights and shadows gain, and how red, green and blue are mixed
LIGHTS = np.float32([0.25, 0.05, -0.25])
SHADOWS = np.float32([-0.10, 0.02, 0.12])
MIX = np.float32([[0.55, 0.15, 0.20], [0.35, 0.60, 0.20], [0.10, 0.25, 0.60]])


def shapes(out, clips=40, frames=24, size=64, seed=0, palette="easy"):
    """Write clips of moving shapes: the same world in two styles, but no clip of X is one of Y.

    X is plain: a red disc, a yellow box, a pale wedge over blue. Y is another palette with patterns that move
    with their shapes. Shape tells which colour belongs to which, so the right translation can be found
    without pairs. palette: "easy", where colour points to the right part, too, or "crossed", where it points
    to wrong ones. The same arguments give the same bytes.
    """
    _at_least(clips=(clips, 1), frames=(frames, 2), size=(size, 16))
    styles = {"X": X, "Y": PALETTES[palette]}
    arcs = {}
    for domain, other in (("X", "Y"), ("Y", "X")):
        for n in range(clips):
            world = _world(np.random.default_rng(seed_of("domains", seed, domain, n)), frames)
            arcs[f"{domain}/clip_{n:03d}"] = functools.partial(_draw, world, styles[domain], size)
            truth = f"truth/{domain}_in_{other}/clip_{n:03d}"
            arcs[truth] = functools.partial(_draw, world, styles[other], size)
    return _write(out, arcs)


def film(out, source, size=64, look="graded"):
    """Write some clips of a film as X, and others, in another look that is known, as Y.

    look: "graded", every other block of each arc's frames by `grade`; "night", every other arc by `night`.
    source: "sample", a video, a folder of videos, or a folder of arcs. size: pixels of a side.
    """
    _at_least(size=(size, 16))
    found = _arcs(out, source, size)
    if look == "night" and len(found) < 2 * LEAST_ARCS:
        raise UserError(
            f"{source} has {len(found)} arcs, and the night takes every other one of {2 * LEAST_ARCS} or "
            "more: extract it with split_scenes, or name more videos"
        )
    clips = found if look == "night" else _blocks(source, found)
    arcs = {}
    for n, (name, frames) in enumerate(clips):
        plain = functools.partial(np.asarray, frames)
        other = functools.partial(LOOKS[look], frames)
        if n % 2 == 0:
            arcs[f"X/{name}"] = plain
            arcs[f"truth/X_in_Y/{name}"] = other
        else:
            arcs[f"Y/{name}"] = other
            arcs[f"truth/Y_in_X/{name}"] = plain
    return _write(out, arcs)


def _blocks(source, arcs):
    """[(name, frames)] of the blocks that each arc is cut into."""
    blocks = []
    for arc, frames in arcs:
        if len(frames) < 2 * BLOCKS:
            raise UserError(
                f"{source}: arc {arc!r} has {len(frames)} frames, and {2 * BLOCKS} blocks are cut from each"
            )
        edges = np.linspace(0, len(frames), 2 * BLOCKS + 1).astype(int)
        blocks += [(f"{arc}_{n}", frames[edges[n] : edges[n + 1]]) for n in range(2 * BLOCKS)]
    return blocks


def pair(out, x, y, size=64):
    """Write two domains of one's own.

    x, y: "sample", a video, a folder of videos, or a folder of arcs. size: pixels of a side.
    """
    _at_least(size=(size, 16))
    arcs = {}
    for domain, source in (("X", x), ("Y", y)):
        for arc, frames in _arcs(out, source, size):
            arcs[f"{domain}/{arc}"] = functools.partial(np.asarray, frames)
    return _write(out, arcs)


def grade(frames):
    """Grade uint8 RGB `[..., 3]`: teal shadows, orange lights, less green. Each colour becomes another."""
    x = frames.astype(np.float32) / 255
    x = x - 0.06 * np.sin(2 * np.pi * x)  # an S-shaped curve: darks darker, lights lighter
    light = x @ np.float32([0.299, 0.587, 0.114])
    tint = light[..., None] * LIGHTS + SHADOWS
    graded = 0.14 + 0.72 * (x @ MIX) + tint
    return np.clip(graded * 255, 0, 255).round().astype(np.uint8)


def night(frames):
    """Turn uint8 RGB `[n, H, W, 3]` into a night that no map of colours alone makes.

    Reds and yellows go darker than blues, a lamp's glow surrounds what is bright, the corners are dark, and
    there is grain, the same whenever the same frames are given.
    """
    height, width = frames.shape[1:3]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    corner = ((2 * y / height - 1) ** 2 + (2 * x / width - 1) ** 2) / 2  # 0 in the middle, 1 in the corners
    vignette = (1 - 0.6 * corner)[..., None]
    noise = np.random.default_rng(seed_of("night", len(frames))).standard_normal(frames.shape[:3])
    made = []
    for picture, grain in zip(frames.astype(np.float32) / 255, noise, strict=True):
        hue, lightness, saturation = cv2.split(cv2.cvtColor(picture, cv2.COLOR_RGB2HLS))
        kept = 0.45 + 0.2 * saturation * np.cos(np.deg2rad(hue - 230))  # of the light: most of blue
        dark = picture * kept[..., None] * NIGHT
        bright = np.clip(lightness - 0.6, 0, None)
        glow = cv2.GaussianBlur(bright, None, height / 20)[..., None] * LAMP
        made.append((dark + glow) * vignette + 0.012 * grain[..., None])
    return np.clip(np.stack(made) * 255, 0, 255).round().astype(np.uint8)


LOOKS = {"graded": grade, "night": night}


# ---- moving shapes


def _world(rng, frames):
    """{part: centres float64 `[frames, 2]`}, in sides of the picture: straight paths that bounce."""
    world = {}
    for part, radius in PARTS.items():
        angle = rng.uniform(0, 2 * np.pi)
        start = rng.uniform(radius, 1 - radius, 2)
        speed = STEP / 64 * rng.uniform(0.6, 1.4)
        step = speed * np.array([np.cos(angle), np.sin(angle)])
        path = start - radius + np.outer(np.arange(frames), step)
        room = 1 - 2 * radius
        world[part] = radius + room - np.abs(path % (2 * room) - room)  # folded back and forth
    return world


def _draw(world, style, size):
    """uint8 `[frames, size, size, 3]`, edges softened over a pixel; the smaller shapes lie above."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    low, high = map(np.array, style["ground"])
    ground = low + (high - low) * y[..., None]
    pictures = []
    for t in range(len(world["disc"])):
        picture = ground
        for part, radius in PARTS.items():
            dx = x - world[part][t, 0]
            dy = y - world[part][t, 1]
            across = {"disc": dy, "box": (dx + dy) / 2, "wedge": dx}[part]  # where the pattern varies
            inside = {
                "disc": np.hypot(dx, dy) - radius,
                "box": np.maximum(abs(dx), abs(dy)) - 0.85 * radius,
                "wedge": np.maximum(dy - 0.7 * radius, (2 * abs(dx) - dy) / 5**0.5 - 0.5 * radius),
            }[part]
            cover = np.clip(0.5 - inside * size, 0, 1)[..., None]
            wave = 0.5 + 0.5 * np.sin(2 * np.pi * across * 64 / PERIOD)[..., None]
            plain, pattern = map(np.array, style[part])
            picture = picture + cover * (plain + wave * (pattern - plain) - picture)
        pictures.append(picture)
    return (np.stack(pictures) * 255).round().astype(np.uint8)


# ---- reading and writing


def _arcs(out, source, size):
    """[(name, uint8 `[n, size, size, 3]`)] of a folder of arcs, or of anything that `extract` takes.

    What is left out is said on stderr.
    """
    if not source:
        raise UserError('a source is empty: name a video, a folder of videos or of arcs, or "sample"')
    out = _free(out)  # before what takes minutes
    folder, left_out = Path(source).expanduser(), []
    with can_write(out, WAY):
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=out.parent, prefix=".frames-")
    with scratch:
        if source == "sample" or folder.is_file() or (folder.is_dir() and not _has_arcs(folder)):
            made = extract(source, scratch.name, height=size, width=size, progress=False)
            folder, left_out = Path(scratch.name), [": ".join(failed) for failed in made.failed]
        dataset = open_dataset(folder, size, size, cache=False, progress=False)
        if len(dataset.domains) == 2:
            raise UserError(f"{folder} holds two domains already: name {folder / 'X'} or {folder / 'Y'}")
        for line in left_out + dataset.warnings:
            print(line, file=sys.stderr)
        return [(arc.name, dataset.frames[arc.start : arc.stop].numpy()) for arc in dataset.arcs]


def _at_least(**settings):
    """settings: name -> (value, least)."""
    for name, (value, least) in settings.items():
        if value < least:
            raise UserError(f"{name} must be {least} or more, not {value!r}")


def _has_arcs(folder):
    """Whether pictures lie in a folder that are no covers, right beside videos."""
    places = {file.parent for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES}
    has_videos = any(file.suffix.lower() in VIDEO_SUFFIXES for file in folder.iterdir())
    return places != {folder} if has_videos and places else bool(places)


def _free(out):
    """The absolute path of the folder `out`. Raises UserError where it is taken."""
    out = Path(out).expanduser().absolute()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} is there already: name another folder, or delete it")
    return out


def _write(out, arcs):
    """Write {path of an arc: function that gives its frames}. Returns {folder of arcs: (arcs, frames)}.

    Raises UserError where `out` is taken, or cannot be written.
    """
    out, counts = _free(out), {}
    with can_write(out, WAY), atomic_folder(out) as scratch:
        for path, make_frames in arcs.items():
            (scratch / path).mkdir(parents=True)
            frames = make_frames()
            for i, frame in enumerate(frames):
                (scratch / path / f"frame_{i:04d}.png").write_bytes(png_bytes(frame))
            folder = str(Path(path).parent)
            clips, pictures = counts.get(folder, (0, 0))
            counts[folder] = clips + 1, pictures + len(frames)
    return counts


@command
def main():
    said = argparse.SUPPRESS  # what is not said has the default of the function that takes it
    parser = argparse.ArgumentParser(description="Make two unpaired domains of clips.", argument_default=said)
    parser.add_argument("out", help="the folder to make")
    parser.add_argument("--clips", type=int, help="shapes: clips of each domain (40)")
    parser.add_argument("--frames", type=int, help="shapes: frames a clip (24)")
    parser.add_argument("--seed", type=int, help="shapes (0)")
    parser.add_argument("--palette", choices=sorted(PALETTES), help="shapes: Y's colours (easy)")
    parser.add_argument("--size", type=int, help="pixels of a side (64)")
    parser.add_argument(
        "--film", dest="source", help='grade this: "sample", a video, a folder of videos or of arcs'
    )
    parser.add_argument("--look", choices=sorted(LOOKS), help="film: of Y (graded)")
    parser.add_argument("--x", help="domain X, the same kinds of source")
    parser.add_argument("--y", help="domain Y")
    given = vars(parser.parse_args())
    make, own = shapes, {"clips", "frames", "seed", "palette"}
    if "source" in given:
        make, own = film, {"source", "look"}
    if given.keys() & {"x", "y"}:
        if not given.keys() >= {"x", "y"} or make is film:
            raise UserError("give --x and --y together, or --film, or none of them for moving shapes")
        make, own = pair, {"x", "y"}
    for name in sorted(given.keys() - own - {"out", "size"}):
        raise UserError(f"--{name} does nothing here: --help says which source it is for")
    for folder, (clips, frames) in make(**given).items():
        print(f"{given['out']}/{folder}: {clips} arcs, {frames} frames")


if __name__ == "__main__":
    sys.exit(main())
