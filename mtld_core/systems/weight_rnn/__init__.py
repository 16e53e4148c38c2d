"""Weight RNN: a VAE whose weights a GRU changes, image by image. hyper: changed weights; nets, videos and
losses: its other parts; system: how they learn."""
