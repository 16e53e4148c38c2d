"""RL-V2V-GAN: unpaired video-to-video translation.

nets: its networks; losses; decisions: its decision process; replay; system: how they learn.
"""
