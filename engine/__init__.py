"""Training and evaluation: devices, processes, the loop, checkpoints, metrics. Uses all the other packages."""
