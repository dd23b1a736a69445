"""Devices, processes, progress on the terminal."""
