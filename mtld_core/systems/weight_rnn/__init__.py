"""Weight RNN: a VAE whose weights a GRU changes, image by image.

hyper: changed weights, and the VAE under them; nets, videos, losses: its other parts; system: how they learn.
"""
