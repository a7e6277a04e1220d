"""ZeroTune's evaluation: reads a Hugging Face checkpoint folder, asks it in batches, and scores the answers. Imports nothing of `train`."""
