"""MTLD: one image in, a sequence out. nets: its networks; system: how they learn."""
