"""Training: data, batches, the loop, checkpoints, scores and model cards."""
