"""Autoencoders of one's own: training, and the figures of their reconstructions."""
