"""The decoder's state between calls: constant in the target's length, unlike a key-value cache.

Shapes: B batch, E input channels, H units, K filter width, G gates, N heads, S source length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class QRNNCacheLayer(CacheLayerMixin):
    """What one decoder layer remembers.

    Attributes:
        state: Its last K-1 inputs (B, K-1, E) and c (B, H); empty before the first step.
        memory: What it needs of the source: V h~ (B, G*H), keys and values (B, N, S, H/N).
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.state: tuple[torch.Tensor, ...] = ()
        self.memory: tuple[torch.Tensor | None, ...] = ()
        self.num_steps = 0

    def store(self, state: tuple[torch.Tensor, ...], num_steps: int) -> None:
        """Replace the state after `num_steps` more steps."""
        self.state = tuple(state)
        self.num_steps += num_steps
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Steps taken so far, pads included."""
        return self.num_steps

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask of the next call."""
        return self.num_steps + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """No limit (the name of `get_max_length` in older releases of transformers)."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.memory = (), ()
        self.num_steps = 0
        self.is_initialized = False

    def _on_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.state = tuple(change(tensor) for tensor in self.state)
        self.memory = tuple(None if tensor is None else change(tensor) for tensor in self.memory)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row b becomes row `beam_idx[b]`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row becomes `repeats` equal neighbours."""
        self._on_rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices`."""
        self._on_rows(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))

    def crop(self, tokens_to_remove: int) -> None:
        """A recurrence cannot be undone: only nothing can be removed.

        Raises:
            ValueError: If anything is to be removed.
        """
        if tokens_to_remove != 0:
            raise ValueError(
                "`tokens_to_remove` must be 0 for a QRNNCache, which keeps no past states, "
                f"but is {tokens_to_remove}."
            )

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to prepare: the first `store` fills the layer."""

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Refused: there are no keys and values of past targets.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "A QRNNCache must be given states by `store`, but is given keys and values."
        )


class QRNNCache(Cache):
    """Cache of a QRNN decoder, passed as `past_key_values`.

    Args:
        num_layers: Number of decoder layers.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[QRNNCacheLayer() for _ in range(num_layers)])

    def layer(self, index: int) -> QRNNCacheLayer:
        """What decoder layer `index` remembers."""
        layer = self.layers[index]
        assert isinstance(layer, QRNNCacheLayer)
        return layer

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Steps taken so far, pads included."""
        return self.layer(layer_idx).get_seq_length()
