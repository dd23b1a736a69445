"""Condition, cache, AR steps, diffusion steps, decoding; guidance, edits, captions."""
