"""Building blocks that two systems or more share. Shapes in the docstrings: N pictures, C channels, h w grid,
H W pixels.
"""
