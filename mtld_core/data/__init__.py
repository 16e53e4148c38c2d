"""Data: `open_dataset` reads arcs, images, recordings or HDF5; windows, splits and batches of their frames.

Letters: N frames in all, B batch, T frames of a window, H W pixels. Stored frames are uint8 `[N, H, W, 3]`.
"""

from mtld_core.data.batches import Batches
from mtld_core.data.cuts import find_cuts, thumbnail
from mtld_core.data.dataset import Arc, Dataset, DomainPair
from mtld_core.data.opening import open_dataset
from mtld_core.data.windows import covered, split_alike, split_windows, with_ends

__all__ = [
    "Arc",
    "Batches",
    "Dataset",
    "DomainPair",
    "covered",
    "find_cuts",
    "open_dataset",
    "split_alike",
    "split_windows",
    "thumbnail",
    "with_ends",
]
