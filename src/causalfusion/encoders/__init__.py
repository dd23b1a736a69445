"""Frozen networks that others trained: their weights, and features at places of an image."""
