"""The demo of `make run`: a corpus that generates itself, a small model that learns it."""
