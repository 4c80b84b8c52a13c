"""The machine: devices, processes, files, checkpoints, metrics."""
