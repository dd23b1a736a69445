"""The images that are measured: made, read, kept."""
