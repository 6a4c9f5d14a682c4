"""What the commands share: options, files, checkpoints, devices, seeds."""
