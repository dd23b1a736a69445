"""Exchange with other code: released checkpoints, recorded tensors, self-contained model folders."""
