"""The evaluation: asks a Hugging Face checkpoint in batches and scores the answers. Imports nothing of `train`."""
