"""Images composed into grids and sheets, with text on them."""
