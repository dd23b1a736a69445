"""Probes: what can be read from a model's features of images, by layer and noise level."""
