"""A classifier as PPO's reward, made without training."""

from __future__ import annotations

from pathlib import Path

from tests.support.training_runs import TINY


def reward_classifier(folder: Path) -> Path:
    """Classes whose logits depend on the last token alone: a model whose layers add nothing to the embedding."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    names = {0: "bad", 1: "good"}
    config = AutoConfig.from_pretrained(TINY, id2label=names, label2id={"bad": 0, "good": 1}, pad_token_id=0)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config)
    add_nothing(model)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


def add_nothing(model: object) -> None:
    """The model's layers leave the embeddings as they are."""
    import torch

    assert isinstance(model, torch.nn.Module)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(parameter)
