"""Optimisers, and the schedules of their learning rates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .loop import LoopOptions

SCHEDULES = ("cosine", "linear", "constant", "epochs")
OPTIMIZERS = ("adamw", "adam", "rmsprop", "sgd")
WEIGHTS = ("matrices", "all")
LOSSES = ("tokens", "rows")


def make_optimizer(model: torch.nn.Module, options: LoopOptions) -> torch.optim.Optimizer:
    """Make the optimiser, with weight decay of the weights that `decayed_weights` names."""
    decayed: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    # By identity: an output layer tied to an embedding is the same parameter. The row of a rare
    # token gets few gradients, but would be decayed at every update.
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    for parameter in model.parameters():
        is_matrix = parameter.dim() >= 2 and id(parameter) not in embeddings
        decays = is_matrix or options.decayed_weights == "all"
        (decayed if decays else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if options.optimizer == "rmsprop":
        rate, alpha, epsilon = options.learning_rate, options.adam_beta2, options.adam_epsilon
        return torch.optim.RMSprop(groups, lr=rate, alpha=alpha, eps=epsilon)
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, fused=True)
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind(
        groups,
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        fused=True,
    )


def learning_rate_factor(options: LoopOptions, step: int, progress: float, epoch: int = 0) -> float:
    """Compute the share of the highest learning rate at one update.

    Args:
        options: The schedule and its warm-up.
        step: Updates made before.
        progress: Share of the budget used, in [0, 1].
        epoch: Passes over the data that ended.
    """
    warmup = min(1.0, (step + 1) / max(1, options.warmup_steps))
    if options.schedule == "constant":
        return warmup
    if options.schedule == "epochs":
        decays = max(0, epoch + 1 - options.constant_epochs)
        return warmup * float(options.epoch_factor) ** decays
    left = 1.0 - min(1.0, progress)
    decay = left if options.schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
    return warmup * decay
