"""ZeroTune's trainer: one loop, with what is learned, which weights move and how it is spread kept apart."""
