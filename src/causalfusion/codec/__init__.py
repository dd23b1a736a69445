"""Pixels to tokens and back: autoencoders, patches, normalisation, the latent cache; text to token ids."""
