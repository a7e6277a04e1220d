"""Merges a run's checkpoint and its base model into one self-contained Hugging Face folder.

    python -m train.merge RUN_OR_CHECKPOINT OUT [--checkpoint best|last] [--weights ...] [--quantized_base ...]

Weights are merged and written one at a time; whole models are loaded only for the comparison, one after the other.
"""
