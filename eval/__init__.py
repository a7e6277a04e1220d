"""Evaluates Hugging Face checkpoints on tasks and compares them. Imports nothing from `train`."""
