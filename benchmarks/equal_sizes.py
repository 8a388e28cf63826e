"""Models of equal numbers of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Count the trained parameters; a table of positions that is computed is none."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def nearest(make: Callable[[int], Any], parameters: int, *, step: int) -> Any:
    """Make the model of the width, a multiple of `step`, with the nearest number of parameters."""
    state = torch.get_rng_state()

    def number(width: int) -> int:
        # Tried without drawing: the model's weights do not depend on how many were tried.
        with torch.device("meta"):
            return count_parameters(make(width))

    width = step
    while number(width) < parameters:
        width += step
    if width > step and parameters - number(width - step) < number(width) - parameters:
        width -= step
    torch.set_rng_state(state)
    return make(width)
