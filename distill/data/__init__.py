"""From files to batches of uint8 views; every random choice is a function of (seed, stage, epoch, sample index)."""
