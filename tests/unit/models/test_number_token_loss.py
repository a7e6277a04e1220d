"""The number token loss in the output layer equals the package's over whole logits, with every gradient.

Shape suffixes: b rows, t positions, v vocabulary.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from tests.unit.models.test_loss_head import build
from train.objectives.number_token_loss import DIGITS, NumberTokenLoss
from zerotune.common.errors import UserError
from zerotune.models import loss_head

VOCABULARY = 61  # logits of the models; the tokenizer has fewer tokens
TOKENS = {token: i for i, token in enumerate(["a", "b", "12", "7.", "½", "٣", *reversed(DIGITS)])}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_head, "CHUNK_ELEMENTS", VOCABULARY * 4)


def tokenizer(tokens: dict[str, int] = TOKENS) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(tokens, unk_token="a")))


def batch(text: str = "a7b91 120a 5") -> tuple[dict[str, Any], Tensor]:
    """Two rows; spaces have no target."""
    targets_bt = torch.tensor([[-100 if letter == " " else TOKENS[letter] for letter in text]] * 2)
    targets_bt[1, :5] = -100
    return {"input_ids": targets_bt.clamp(min=0), "use_cache": False}, targets_bt


def by_hand(logits_btv: Tensor, targets_bt: Tensor) -> Tensor:
    """Each digit's distance by its probability among digits, and 1.01 x 9 for the probability of all else."""
    places = torch.tensor([TOKENS[digit] for digit in DIGITS])
    values = torch.arange(10.0)
    total = torch.zeros(())
    for logits_v, target in zip(logits_btv.flatten(0, 1), targets_bt.flatten().tolist(), strict=True):
        if target in places:
            p_v = logits_v.softmax(-1)[places]
            distance = (values - float(DIGITS[places.tolist().index(target)])).abs()
            total = total + (p_v / p_v.sum() * distance).sum() * p_v.sum() + 1.01 * 9 * (1 - p_v.sum())
    return total


@pytest.mark.parametrize("family", ["llama", "llama tied", "granite divides", "lora"])
def test_both_losses_and_their_gradients(family: str) -> None:
    model = build(family if family != "lora" else "llama")
    if family == "lora":
        model = get_peft_model(model, LoraConfig(target_modules=["lm_head", "q_proj"], init_lora_weights=False))
    inputs, targets_bt = batch()
    found = loss_head.token_losses(model, inputs, targets_bt, NumberTokenLoss(tokenizer()))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(found @ torch.tensor([1.0, 0.3]), trained)
    logits_btv = model(**inputs).logits
    tokens = F.cross_entropy(logits_btv.flatten(0, 1), targets_bt.flatten(), reduction="sum")
    digits = by_hand(logits_btv, targets_bt)
    torch.testing.assert_close(found, torch.stack([tokens, digits]), rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(tokens + 0.3 * digits, trained)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("text", ["ab a", "    "])
def test_without_digits_or_targets_every_parameter_has_a_gradient(text: str) -> None:
    model = build()
    inputs, targets_bt = batch(text)
    losses = loss_head.token_losses(model, inputs, targets_bt, NumberTokenLoss(tokenizer()))
    assert float(losses[1].detach()) == 0
    losses[1].backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_only_tokens_of_one_digit_count_and_the_tokenizer_stays_as_it_is() -> None:
    words = tokenizer()
    loss = NumberTokenLoss(words)
    meant = {token for token, i in TOKENS.items() if loss.is_meant(torch.tensor([i, -100])).any()}
    assert meant == set(DIGITS)
    assert loss(torch.zeros(1, VOCABULARY), torch.tensor([TOKENS["3"]])) > 0
    assert words.get_vocab() == TOKENS


def test_a_tokenizer_without_digits_is_refused() -> None:
    with pytest.raises(UserError, match=r"causal_lm\.number_token_weight: the tokenizer has no token for 0, 9; choose"):
        NumberTokenLoss(tokenizer({token: i for token, i in TOKENS.items() if token not in "09"}))
