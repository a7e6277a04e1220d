"""How a run ends early: signals, hanging or dead ranks, and a run folder in use."""
