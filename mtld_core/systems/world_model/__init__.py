"""The world model in three stages, each a system of its own: tokenizer, latent actions, dynamics.

Source: sources text 5 (dynamics trainer), after Genie (Bruce et al. 2024).
"""
