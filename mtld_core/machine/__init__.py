"""The machine that a run computes on: its heat, its threads, CUDA graphs, its memory."""
