"""Measuring the quality and speed of generation settings, to choose the best within a time budget."""
