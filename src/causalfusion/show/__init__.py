"""Charts and pictures of training and generation, for people."""
