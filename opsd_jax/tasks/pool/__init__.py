"""Verdicts from worker processes that may hang, swell or die.

pool.py is what asks them, worker.py what they run, codec.py what goes between.
"""

from opsd_jax.tasks.pool.pool import Pool, shared

__all__ = ["Pool", "shared"]
