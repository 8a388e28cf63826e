"""Pushes to the Hub and verifies what was pushed."""
