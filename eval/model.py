"""A causal language model that answers requests in batches.

Shape suffixes: b rows, t positions, n scored positions of a batch, v vocabulary, d width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eval.errors import UserError
from eval.protocols import Generate, Generated, Score, Scored

LOGITS_AT_ONCE = 2**25  # numbers of one block of logits: 128 MB in fp32
PROBE_TOKENS = 8


class LanguageModel:
    """Scores and continues token sequences. Its answers do not depend on what else is in the batch.

    Args:
        model: A transformers causal language model in evaluation mode.
        tokenizer: Turns generated tokens into text.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.device: torch.device = model.device
        self._has_plain_head = self._head_is_plain()

    @torch.inference_mode()
    def score(self, requests: Sequence[Score]) -> list[Scored]:
        """Sum of log-probabilities of each continuation, in nats.

        Rows are padded on the right, where causal attention never looks. Logits exist only for the scored positions and
        only for a block of these at a time.
        """
        rows = [request.prefix_ids + request.continuation_ids for request in requests]
        ids_bt = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row_t, ids in zip(ids_bt, rows, strict=True):
            row_t[: len(ids)] = torch.tensor(ids)
        counts = [len(request.continuation_ids) for request in requests]
        row_n = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts))
        at_n = torch.cat(
            [torch.arange(len(r.prefix_ids) - 1, len(ids) - 1) for r, ids in zip(requests, rows, strict=True)]
        )
        targets_n = ids_bt[row_n, at_n + 1].to(self.device)
        log_prob_n = self._log_probs(ids_bt.to(self.device), row_n.to(self.device), at_n.to(self.device), targets_n)
        sums = [float(part.sum()) for part in torch.split(log_prob_n.double(), counts)]
        if not all(map(torch.isfinite, torch.tensor(sums))):
            raise UserError(
                "the model gives probabilities that are not finite; try --precision fp32, or its weights are broken"
            )
        return [Scored(*row) for row in zip(sums, counts, [request.bytes for request in requests], strict=True)]

    @torch.inference_mode()
    def generate(self, requests: Sequence[Generate]) -> list[Generated]:
        """Greedy continuations; all requests of a batch share limit and stop tokens. Prompts are padded on the left."""
        rows = [request.prefix_ids for request in requests]
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id or 0
        stops = list(requests[0].stop_ids)
        out_bt = self.model.generate(
            input_ids=torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in rows], device=self.device),
            attention_mask=torch.tensor(
                [[0] * (width - len(ids)) + [1] * len(ids) for ids in rows], device=self.device
            ),
            max_new_tokens=requests[0].max_new_tokens,
            do_sample=False,
            eos_token_id=stops or None,
            pad_token_id=pad,
        )
        return [self._generated(ids[width:], stops) for ids in out_bt.tolist()]

    def _generated(self, ids: list[int], stops: list[int]) -> Generated:
        end = next((k for k, token in enumerate(ids) if token in stops), None)
        return Generated(self.tokenizer.decode(ids[:end], skip_special_tokens=True), len(ids[:end]), end is not None)

    def _log_probs(self, ids_bt: Tensor, row_n: Tensor, at_n: Tensor, targets_n: Tensor) -> Tensor:
        """log p of each target, in fp32."""
        if not self._has_plain_head:
            return _log_prob(self.model(input_ids=ids_bt, use_cache=False).logits[row_n, at_n], targets_n)
        hidden_nd = self.model.base_model(input_ids=ids_bt, use_cache=False).last_hidden_state[row_n, at_n]
        head = self.model.get_output_embeddings()
        blocks = _blocks(LOGITS_AT_ONCE // head.weight.shape[0] or 1, hidden_nd, targets_n)
        return torch.cat([_log_prob(head(block_nd), block_n) for block_nd, block_n in blocks])

    @torch.inference_mode()
    def _head_is_plain(self) -> bool:
        """Whether logits are the output embeddings times the last hidden states, without a soft cap or scale."""
        head = self.model.get_output_embeddings()
        if head is None or self.model.base_model is self.model:
            return False
        ids_bt = torch.arange(PROBE_TOKENS, device=self.device)[None] % head.weight.shape[0]
        whole_btv = self.model(input_ids=ids_bt, use_cache=False).logits.float()
        hidden_btd = self.model.base_model(input_ids=ids_bt, use_cache=False).last_hidden_state
        return torch.equal(head(hidden_btd).float(), whole_btv)  # a soft cap hardly shows in small logits: no tolerance


def _log_prob(logits_nv: Tensor, targets_n: Tensor) -> Tensor:
    """log p of the targets. Not by log_softmax: over 49k words that is 5e-6 too low or high for every token alike."""
    logits_nv = logits_nv.float()
    return logits_nv.gather(-1, targets_n[:, None])[:, 0] - logits_nv.logsumexp(-1)


def _blocks(size: int, *tensors_n: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors cut together into blocks of at most `size` along their first axis."""
    return list(zip(*(torch.split(tensor, size) for tensor in tensors_n), strict=True))
