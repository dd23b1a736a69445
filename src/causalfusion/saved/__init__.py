"""Model folders: written whole, read strictly, in every format there was."""
