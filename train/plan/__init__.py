"""Memory, time, disk and communication of a run before it starts: `python -m train.plan RECIPE`. Reads no weights."""
