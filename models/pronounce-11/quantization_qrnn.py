"""Weights of int8 rows, which are loaded as floats; and what layers of bitsandbytes need then.

`hf-qrnn quantize` stores a matrix as int8 under its own name and a scale for each of its rows
under that name and `_scale`. The file says so itself: no field of the config does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import load_state_dict

from .checks_qrnn import stored_dtypes

SCALE = "_scale"
BITSANDBYTES_LAYERS = ("Linear4bit", "Linear8bitLt")
PACKED_ROWS = 32


def dequantized(
    state_dict: Mapping[str, torch.Tensor] | None, files: Sequence[str] | None
) -> dict[str, torch.Tensor] | None:
    """Compute the floats of int8 rows and their scales, in memory or in safetensors files.

    Returns:
        All weights, those of int8 rows as float32 and without their scales; None where there are no
        int8 rows with scales.

    Raises:
        ValueError: If the scales of one are none (names it).
    """
    if state_dict is None:
        stored = {
            name: dtype for path in files or () for name, dtype in stored_dtypes(path).items()
        }
        names = [name for name, dtype in stored.items() if dtype == "I8"]
    else:
        stored = dict.fromkeys(state_dict, "")
        names = [name for name, tensor in state_dict.items() if tensor.dtype == torch.int8]
    names = [name for name in names if name + SCALE in stored]
    if not names:
        return None
    if state_dict is None:
        state_dict = {name: x for path in files or () for name, x in load_state_dict(path).items()}
    floats = dict(state_dict)
    for name in names:
        floats[name] = _floats_of(name, state_dict[name], floats.pop(name + SCALE))
    return floats


def _floats_of(name: str, rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    if rows.dim() != 2 or scales.shape != rows.shape[:1] or not scales.is_floating_point():
        raise ValueError(
            f"the weight `{name}{SCALE}` must have a number for each row of `{name}`, "
            f"{tuple(rows.shape)}, but is {tuple(scales.shape)} of {scales.dtype}."
        )
    scales = scales.float()
    wrong = ~((scales > 0) & scales.isfinite())
    if bool(wrong.any()):
        value = float(scales[wrong][0])
        raise ValueError(
            f"the weight `{name}{SCALE}` must be finite and above 0, but holds {value}."
        )
    return rows.float() * scales[:, None]


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
