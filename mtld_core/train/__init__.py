"""Training: `train` is the whole job, `fit` its last step."""

from mtld_core.train.job import fit, train

__all__ = ["fit", "train"]
