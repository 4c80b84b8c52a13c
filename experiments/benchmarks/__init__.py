"""The benchmarks that `experiments.bench` runs.

Imports of heavy packages stand inside functions: a wrong flag is reported before jax
loads, each side of a comparison loads only its own packages, and the process that
times the sides holds no device.
"""
