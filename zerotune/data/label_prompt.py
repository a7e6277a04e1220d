"""How a labelled text is written for a language model; training and evaluation both write it with this one function."""

from __future__ import annotations

from collections.abc import Sequence


def label_prompt(sentences: Sequence[str]) -> str:
    """The text after which the label word stands, for one sentence or for two.

    It ends in a space. Tokenizers join that space to the word behind it, so encode prompt and label as one text.
    """
    names = ["sentence"] if len(sentences) == 1 else [f"sentence{k}" for k in range(1, len(sentences) + 1)]
    parts = [f"{name}: {sentence}" for name, sentence in zip(names, sentences, strict=True)]
    return " ".join([*parts, "Label: "])
