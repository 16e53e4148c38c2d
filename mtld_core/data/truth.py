"""Where the truth of an unpaired translation lies: beside the data, under the same arc and frame numbers."""

from pathlib import Path

from mtld_core.data.opening import open_dataset

TRUTHS = {"x_to_y": "X_in_Y", "y_to_x": "Y_in_X"}  # direction -> the folder of its truth
DIRECTIONS = tuple(TRUTHS)


def open_truth(root, direction, size, arc=""):
    """Open what the source domain's arcs look like in the other one, a `Dataset`; None where it is not known.

    root: the folder of both domains. size: (H, W) of the frames. arc: the only one to open, "" for all.
    """
    folder = Path(root) / "truth" / TRUTHS[direction] / arc
    if not folder.is_dir():
        return None
    return open_dataset(folder, *size, progress=False)


def true_frames(truth, dataset, start, stop):
    """Find the true translation of rows start..stop-1 of `dataset`, all in one arc: uint8 `[n, H, W, 3]`.

    truth: from `open_truth`; the arc's name and the frames' numbers lead to its rows. Raises UserError where
    it lacks the arc or a frame.
    """
    arc = next(arc for arc in dataset.arcs if arc.start <= start < arc.stop)
    numbers = arc.numbers[start - arc.start : stop - arc.start]
    rows = [truth.row(arc.name, int(number)) for number in numbers]
    return truth.frames[rows]
