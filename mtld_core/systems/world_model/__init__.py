"""The world model in three stages, each a system of its own: tokenizer, latent actions, dynamics.

Source: the text on a dynamics trainer, after Genie (Bruce et al. 2024).
"""
