"""A page to play with a model in a browser: drawing, changing a part, describing, quality against time."""
