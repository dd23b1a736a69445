"""Settings of generation, measured: which is best at which speed."""
