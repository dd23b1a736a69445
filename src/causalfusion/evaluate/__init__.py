"""From images to figures with their uncertainty."""
