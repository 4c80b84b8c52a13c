"""The machine: mesh, processes, files, checkpoints, metrics."""
