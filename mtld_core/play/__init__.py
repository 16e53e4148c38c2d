"""Steering a learned game: `Play` is a dream in progress."""

from mtld_core.play.dream import Play

__all__ = ["Play"]
