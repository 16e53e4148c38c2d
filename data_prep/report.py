"""What an extraction made: a table in words, and one picture with a labelled row of frames for each arc."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtld_core.config import UserError
from mtld_core.files import atomic_path
from mtld_core.frames import cut_away

ROUNDED = 0.03  # the share of a picture that may be cut away unsaid: a side that follows is a whole number
TELLING = 0.1  # the share that may be cut away before another shape is proposed
BLOCK = 16  # pixels: of both sides' multiples every system's demo and small preset can make something
FRAMES, ARCS = 8, 40  # shown at most: frames of an arc, arcs of a dataset
SIDE, GAP, LINE = 128, 4, 20  # pixels: a picture's width, the space between, the height of a label


@dataclasses.dataclass
class ArcRow:
    """One arc on disk."""

    arc: str
    source: str
    frames: int
    size: tuple  # (H, W)
    fps: float  # frames a second in the video's time, before repeats were dropped
    seconds: float
    status: str  # "done", or "kept": it was finished before
    duplicates: int  # dropped
    original: tuple  # (H, W) of the video; `size` where an older version of this tool did not note it
    fit: str
    note: str = ""

    @property
    def cut(self):
        """The share of the picture that was cut away, 0 to 1."""
        return cut_away(*self.original, *self.size) if self.fit == "crop" else 0.0

    @property
    def cut_where(self):
        (h, w), (height, width) = self.original, self.size
        return "top and bottom" if h * width > w * height else "left and right"


@dataclasses.dataclass
class Extraction:
    """What `extract` made."""

    dataset_root: Path
    rows: list  # of ArcRow
    failed: list  # of (source, reason)
    contact_sheet: Path  # the picture of all arcs

    def table(self):
        """Markdown: a row per arc, a line of totals, a line per failure."""
        lines = [
            "| arc | frames | size | fps | seconds | repeats dropped | status |",
            "|---|---|---|---|---|---|---|",
        ]
        for r in self.rows:
            notes = [r.note] if r.note else []
            if r.cut > ROUNDED:
                notes.append(f"{r.cut:.0%} cut away, {r.cut_where}")
            status = f"{r.status} ({'; '.join(notes)})" if notes else r.status
            size = f"{r.size[0]}x{r.size[1]}"
            lines.append(
                f"| {r.arc} | {r.frames} | {size} | {r.fps:g} | {r.seconds:.2f} | {r.duplicates} | {status} |"
            )
        frames = sum(row.frames for row in self.rows)
        lines.append("")
        lines.append(
            f"{len(self.rows)} arcs, {frames:,} frames (size: height x width) in {self.dataset_root}"
        )
        most = max(self.rows, key=lambda row: row.cut)
        if most.cut > TELLING:
            lines.append(f"\n{proposal(most)}")
        lines += [f"\nFAILED {source}: {reason}" for source, reason in self.failed]
        return "\n".join(lines)

    def check(self):
        """Raise UserError where a video failed."""
        if self.failed:
            names = ", ".join(Path(source).name for source, _ in self.failed)
            raise UserError(f"{len(self.failed)} of the videos failed ({names}); the table says why")


def proposal(row):
    """What to do about an `ArcRow` that lost much of its picture, in words."""
    height, width = fitting_shape(row.original, row.size)
    left = cut_away(*row.original, height, width)
    had, asked = ("{} high and {} wide".format(*shape) for shape in (row.original, row.size))
    return (
        f"{row.cut:.0%} of {row.arc} is cut away ({row.cut_where}): it is {had}, and {asked} was asked for. "
        f"height={height} and width={width} cut {left:.0%}; fit='pad' cuts nothing and adds black borders."
    )


def fitting_shape(original, size):
    """(H, W) in multiples of 16, of 0.7 to 2 times as many pixels as `size`, that crops `original` least."""
    pixels = size[0] * size[1]
    found = {}
    for height in range(BLOCK, 2 * pixels // BLOCK + 1, BLOCK):
        for width in range(BLOCK, 2 * pixels // height + 1, BLOCK):
            if height * width >= 0.7 * pixels:
                found[height, width] = round(cut_away(*original, height, width), 2)
    return min(found, key=lambda shape: (found[shape], shape), default=size)


def contact_sheet(root, rows):
    """Write `<root>/contact_sheet.png` and return its path. rows: a list of ArcRow."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), ARCS)).astype(int))
    shown = [rows[i] for i in chosen]
    scales = [min(SIDE / row.size[1], 2 * SIDE / row.size[0]) for row in shown]
    heights = [max(1, round(row.size[0] * scale)) for row, scale in zip(shown, scales, strict=True)]
    size = (FRAMES * (SIDE + GAP) + GAP, sum(heights) + (LINE + GAP) * len(shown) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    top = GAP
    for row, scale, height in zip(shown, scales, heights, strict=True):
        label = f"{row.arc}: {row.frames} frames, {row.size[1]} x {row.size[0]}, {row.fps:g} fps"
        draw.text((GAP, top), label, fill="black", font=font)
        numbers = np.unique(np.linspace(0, row.frames - 1, FRAMES).round().astype(int))
        for column, number in enumerate(numbers):
            with Image.open(root / row.arc / f"frame_{number:04d}.png") as frame:
                filter = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
                small = frame.resize((max(1, round(frame.width * scale)), height), filter)
            sheet.paste(small, (GAP + column * (SIDE + GAP), top + LINE))
        top += height + LINE + GAP
    with atomic_path(root / "contact_sheet.png") as temporary:
        sheet.save(temporary)
    return root / "contact_sheet.png"
