"""Verification in worker processes that may hang, exhaust memory or die.

pool.py is the parent's side, worker.py runs in the processes, and codec.py encodes
the examples that are sent to them.
"""

from opsd_jax.tasks.pool.pool import Pool, shared

__all__ = ["Pool", "shared"]
