"""Estimating the memory and time of a training run before it begins."""
