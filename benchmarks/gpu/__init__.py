"""The prepared quarter of an hour on a GPU: `scripts/gpu_check.py` runs it."""
