"""Reads, tokenizes and batches text."""
