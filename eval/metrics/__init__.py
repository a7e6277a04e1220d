"""Scores and statistics: pure functions without torch, also used by training."""
