"""Requests to a model and its answers: prompts, batches, the generation engine, cached answers."""
