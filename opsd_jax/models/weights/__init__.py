"""Checkpoints of any format, read into and written from a layout."""
