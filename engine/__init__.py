"""The loop that ties the rooms together: devices, processes, checkpoints, metrics. It alone knows all other rooms."""
