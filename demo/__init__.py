"""What `make run` runs: a corpus that generates itself, a small model that learns it."""
