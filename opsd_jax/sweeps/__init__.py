"""Grids of runs as one table."""
