"""Checkpoints: written whole or not at all, verified, and read on any number of ranks."""
