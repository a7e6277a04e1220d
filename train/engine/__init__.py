"""The engine: the only loop, and what keeps a run alive. It names no objective, tuning, model family or data set."""
