"""Scores and statistics: pure functions without torch, each importable alone by training."""
