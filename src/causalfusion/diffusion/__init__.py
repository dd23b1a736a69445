"""The noise: paths, predictions, levels, weights, samplers."""
