"""Training: the loops, and what they need to survive: checkpoints, metrics, workdirs, signals."""
