"""Models of equal numbers of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from hf_qrnn import QRNNConfig


def count_parameters(model: nn.Module) -> int:
    """Count the trained parameters; a table of positions that is computed is none."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def nearest(make: Callable[[int], Any], parameters: int, *, step: int) -> Any:
    """Make the model of the width, a multiple of `step`, with the nearest number of parameters."""
    return make(nearest_width(make, parameters, step=step))


def nearest_width(make: Callable[[int], nn.Module], parameters: int, *, step: int) -> int:
    """Find the width, a multiple of `step`, of the model with the nearest number of parameters."""
    state = torch.get_rng_state()

    def number(width: int) -> int:
        # Tried without drawing: the model's weights do not depend on how many were tried.
        with torch.device("meta"):
            return count_parameters(make(width))

    # The least width with as many parameters, which grow with it: by doubling, then by halving.
    below, width = 0, step
    while number(width) < parameters:
        below, width = width, 2 * width
    while width - below > step:
        middle = (below + width) // 2 // step * step
        below, width = (middle, width) if number(middle) < parameters else (below, middle)
    if below and parameters - number(below) < number(width) - parameters:
        width = below
    torch.set_rng_state(state)
    return width


def control_config(config: QRNNConfig, **sizes: Any) -> QRNNConfig:
    """Make the config of a control: the QRNN's, of other sizes, without what only a QRNN has."""
    own: dict[str, Any] = {
        "residual": False,
        "rms_norm": False,
        "feed_forward_size": 0,
        "zoneout": 0.0,
        "dense_connections": False,
        "encoder_kernel_sizes": None,
        "decoder_kernel_sizes": None,
    }
    return QRNNConfig(**{**config.to_diff_dict(), **own, **sizes})


@contextmanager
def quietly() -> Iterator[None]:
    """Leave out transformers' messages: one for every width that is tried helps nobody."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
