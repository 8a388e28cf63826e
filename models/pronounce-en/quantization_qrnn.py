"""Checks and settings that layers of bitsandbytes need after a model is loaded."""

from __future__ import annotations

from typing import Any

from torch import nn

BITSANDBYTES_LAYERS = ("Linear4bit", "Linear8bitLt")
PACKED_ROWS = 32


def check_quantized(model: nn.Module) -> None:
    """Check that every layer that bitsandbytes made has quantised weights.

    Raises:
        ValueError: If the checkpoint lacks the weights of one, which stay as they were drawn: its
            first call would fail.
    """
    plain = [
        name
        for name, module in model.named_modules()
        # By name, not by class: nothing here imports bitsandbytes.
        if type(module).__name__ in BITSANDBYTES_LAYERS and type(module.weight) is nn.Parameter
    ]
    if plain:
        raise ValueError(
            "`llm_int8_skip_modules` must name every layer that the checkpoint lacks, since "
            f"bitsandbytes quantises what is loaded; add {', '.join(map(repr, plain))}."
        )


def leave_unpacked(model: nn.Module) -> None:
    """Let 4-bit layers of bitsandbytes that it cannot pack for a CPU go unpacked.

    Where a CPU has AVX-512's bfloat16, the first call in evaluation packs the weights, and fails
    where a row is no whole number of blocks (64 inputs) or the rows are no multiple of 32. As they
    are, such layers are as good, and slower.
    """
    for module in model.modules():
        state: Any = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None or not getattr(module, "support_avx512bf16_for_cpu", False):
            continue
        num_rows, num_inputs = state.shape
        if num_inputs % state.blocksize or num_rows % PACKED_ROWS:
            vars(module)["support_avx512bf16_for_cpu"] = False
