"""Judging: rollouts, reconstructions and translations against the truth and against what costs nothing."""

from mtld_core.judge.checkpoint import judge

__all__ = ["judge"]
