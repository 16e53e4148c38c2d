"""Colours of one set of frames brought to those of another, without pairs."""

import torch

PIXELS = 2_000_000  # of each side at most


def colour_transfer(source, target):
    """(matrix `[3, 3]`, shift `[3]`), float64: the linear map that gives one's colours the mean and
    covariance of the other's.

    source, target: uint8 `[..., 3]`; of more than two million pixels every n-th counts. Of all such maps, the
    one that moves colours least (Pitie and Kokaram 2007).
    """
    source, target = (
        frames.reshape(-1, 3)[:: -(-frames.numel() // (3 * PIXELS))].double() for frames in (source, target)
    )
    root, inverse = _roots(torch.cov(source.T))
    matrix = inverse @ _roots(root @ torch.cov(target.T) @ root)[0] @ inverse
    return matrix, target.mean(0) - matrix @ source.mean(0)


def _roots(covariance):
    """Square root of a symmetric matrix and the inverse of that root; directions without variance have an
    inverse of 0.
    """
    values, vectors = torch.linalg.eigh(covariance)
    roots = values.clamp(min=0).sqrt()
    inverses = torch.where(roots > 1e-6 * roots.max(), 1 / roots, 0)
    return (vectors * roots) @ vectors.T, (vectors * inverses) @ vectors.T
