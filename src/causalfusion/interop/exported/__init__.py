"""Models as programs of torch.export: written, described, and sampled from."""
