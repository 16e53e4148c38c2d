"""RL-V2V-GAN: unpaired video-to-video translation. nets: its networks; decisions: its MDP; system: how they
learn.
"""
