"""Where the truth of an unpaired translation lies: beside the data, under the same arc and frame numbers."""

from pathlib import Path

from mtld_core.data import open_dataset

TRUTHS = {"x_to_y": "X_in_Y", "y_to_x": "Y_in_X"}  # direction -> the folder of its truth


DIRECTIONS = tuple(TRUTHS)


def open_truth(root, direction, size, arc=""):
    """`Dataset` of what the source domain's arcs (or the one that is named) look like in the other domain, at
    `size`.

    root: the folder of both domains. None where that is not known.
    """
    folder = Path(root) / "truth" / TRUTHS[direction] / arc
    return open_dataset(folder, *size, progress=False) if folder.is_dir() else None


def true_frames(truth, dataset, start, stop):
    """uint8 `[stop - start, H, W, 3]`: those rows of a domain's dataset, all in one arc, as `truth` has them.

    They are found by the arc's name and the frames' numbers. Raises UserError where the arc or a frame is
    missing there.
    """
    arc = next(arc for arc in dataset.arcs if arc.start <= start < arc.stop)
    numbers = arc.numbers[start - arc.start : stop - arc.start]
    return truth.frames[[truth.row(arc.name, int(number)) for number in numbers]]
