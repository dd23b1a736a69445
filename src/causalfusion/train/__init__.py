"""Draws, the step, the loop, optimizer, average, checkpoints, many processes."""
