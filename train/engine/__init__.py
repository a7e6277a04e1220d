"""The training loop, ranks, optimizers and metrics, independent of objectives, tunings, model families and data."""
