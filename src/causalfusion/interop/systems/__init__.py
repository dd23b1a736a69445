"""Models of other systems: what their authors released, under our names and back."""
