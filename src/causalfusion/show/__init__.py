"""Charts, pictures and reports of training and generation."""
