"""Building blocks of two systems or more. Letters: N pictures, C channels, h w a grid, H W pixels."""
