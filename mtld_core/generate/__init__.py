"""From one picture to a sequence: `rollout` and `stream` give frames, `generate` writes them to disk."""

from mtld_core.generate.jobs import generate, generate_sequence
from mtld_core.generate.rollouts import rollout, stream

__all__ = ["generate", "generate_sequence", "rollout", "stream"]
