"""Whether a search may compare the losses of its trials."""

from __future__ import annotations

from collections.abc import Sequence

from train.search.space import Parameter

PER_TOKEN = ("loss", "perplexity")  # metrics that are means over tokens


def different_tokens(parameters: Sequence[Parameter], metric: str) -> str:
    """A warning if trials may differ in their tokenizer; "" if they do not."""
    keys = [key for parameter in parameters for key in parameter.keys]
    found = [key for key in keys if key.startswith("tokenizer.") or key in ("model.path", "model.tokenizer")]
    if metric not in PER_TOKEN or not found:
        return ""
    return (
        f"Trials may read different tokens ({', '.join(found)}), so that their {metric} is not comparable: fewer words "
        "or more <unk> are easier to predict. Evaluate the runs and compare bits per byte."
    )
