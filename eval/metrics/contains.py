"""Whether a longer answer says the reference somewhere, forgiving about form as exact match is."""

from __future__ import annotations

import re

from eval.metrics.exact_match import CJK, normalise

_WORD = rf"[^\W{CJK}]|[.-]"  # after `normalise` a dot or dash stands only in a number


def contains(prediction: str, reference: str) -> float:
    """1.0 where the reference stands in the prediction as whole words or numbers ("5" is not in "-5" or "15"), or, if
    it is Chinese, as it is; else 0.0.
    """
    part = normalise(reference)
    if not part:
        return 0.0
    before = rf"(?<!{_WORD})" if re.match(_WORD, part[0]) else ""
    after = rf"(?!{_WORD})" if re.match(_WORD, part[-1]) else ""
    return float(re.search(before + re.escape(part) + after, normalise(prediction)) is not None)
