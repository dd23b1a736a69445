"""Figures from features, labels, texts and scenes."""
