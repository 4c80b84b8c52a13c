"""What `experiments.bench` runs.

Imports stand inside functions here: a wrong flag is told before jax loads, a side
of a comparison loads its own packages and no other's, and the process that only
times the sides holds no device.
"""
