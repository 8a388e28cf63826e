"""Checks of what goes into the models; each failure is one sentence.

Nothing is looked at while a graph is traced. Values are checked on the CPU; on a GPU those of masks
alone, which a process reads a few times at first and then leaves to the GPU: reading waits for it.

Shapes: B batch, S source length, T target length, E embedding, H units, L layers, V vocabulary.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .internals_qrnn import is_transformed

_MAX_HEADER = 100_000_000  # bytes; safetensors' own bound
MAX_WAITS = 16
_waits = itertools.count()


def may_look(tensor: Any) -> bool:
    """Tell whether the shape of `tensor` may decide what happens: not while tracing a graph."""
    # A traced comparison would tie the graph to this one shape.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    return type(tensor) is torch.Tensor or isinstance(tensor, nn.Parameter)


def may_read(tensor: torch.Tensor) -> bool:
    """Tell whether the values of `tensor` may decide what happens.

    Not on a GPU, where reading them would wait for all its work; not under torch.func, where they
    are not those of one sample.
    """
    return tensor.device.type == "cpu" and not is_transformed()


def may_wait(tensor: torch.Tensor) -> bool:
    """Tell whether the values of `tensor` may be read though a GPU must end its work for it.

    So it is `MAX_WAITS` times in a process: a mistake in how batches are made has its sentence, and
    a run of a million updates does not wait in every one.
    """
    return tensor.device.type != "cuda" or next(_waits) < MAX_WAITS


def check_token_ids(
    name: str, ids: torch.Tensor, vocab_size: int, shape: tuple[int, ...] | None = None
) -> None:
    """Check token ids, or with a `shape` labels, where -100 stands for none.

    Raises:
        TypeError: If they are no integers.
        ValueError: If the shape is another or an id is not in [0, V).
    """
    if not may_look(ids):
        return
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"`{name}` must be int64 or int32, but is {ids.dtype}.")
    if ids.dim() != 2 or (shape is not None and tuple(ids.shape) != shape):
        raise ValueError(
            f"`{name}` must have shape {shape or '(batch, length)'}, but has {tuple(ids.shape)}."
        )
    if not may_read(ids) or ids.numel() == 0:
        return
    # One pass for ids that are right; which one is wrong is looked for only then.
    low, high = (int(value) for value in ids.aminmax())
    if low >= 0 and high < vocab_size:
        return
    wrong = (ids < 0) | (ids >= vocab_size)
    rule = f"in [0, {vocab_size})"
    if shape is not None:
        wrong, rule = wrong & (ids != -100), "-100 or " + rule
    if bool(wrong.any()):
        raise ValueError(f"`{name}` must be {rule}, but holds {int(ids[wrong][0])}.")


def check_shape(name: str, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    """Check that a tensor has one exact shape.

    Raises:
        ValueError: If it has another.
    """
    if tensor is not None and may_look(tensor) and tuple(tensor.shape) != shape:
        raise ValueError(f"`{name}` must have shape {shape}, but has {tuple(tensor.shape)}.")


def check_rows(name: str, tensor: torch.Tensor | None, batch: int) -> None:
    """Check that a tensor has one row for each of the batch.

    Raises:
        ValueError: If it has more or fewer.
    """
    if tensor is None or not may_look(tensor):
        return
    if tensor.dim() == 0 or tensor.shape[0] != batch:
        rows = "none" if tensor.dim() == 0 else tensor.shape[0]
        raise ValueError(f"`{name}` must have {batch} rows, as the inputs, but has {rows}.")


def embed(
    embedding: nn.Module,
    sizes: tuple[int, int],
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    name: str,
) -> torch.Tensor:
    """Return embeddings (B, T, E) of ids (B, T), or the ones given: exactly one of the two.

    `sizes` is (V, E): what stands in the embedding's place, an adapter say, need not know them.

    Raises:
        TypeError: If the ids are no integers.
        ValueError: If both or neither are given, a shape does not fit, an id is not in [0, V).
    """
    other = name.replace("input_ids", "inputs_embeds")  # of the decoder: decoder_inputs_embeds
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise ValueError(f"Exactly one of `{name}` and `{other}` must be given, but {given} is.")
    if input_ids is not None:
        check_token_ids(name, input_ids, sizes[0])
        embeds: torch.Tensor = embedding(input_ids)
        return embeds
    assert inputs_embeds is not None
    width = sizes[1]
    if may_look(inputs_embeds) and (inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != width):
        raise ValueError(
            f"`{other}` must be (batch, length, {width}), but is {tuple(inputs_embeds.shape)}."
        )
    return inputs_embeds


def check_mask(
    name: str, mask: torch.Tensor, length: int, batch: int | None = None, *, exact: bool = False
) -> None:
    """Check a mask (B, T) of zeros and ones; without `exact` it may be longer.

    Raises:
        ValueError: If it is not.
    """
    if not may_look(mask):
        return
    fits = mask.dim() == 2 and mask.shape[1] >= length
    fits = fits and (batch is None or mask.shape[0] == batch)
    if not fits or (exact and mask.shape[1] != length):
        rule = f"({batch or 'batch'}, {length if exact else f'at least {length}'})"
        raise ValueError(f"`{name}` must be {rule}, but is {tuple(mask.shape)}.")
    if may_read(mask) and mask.is_floating_point():
        # An additive mask (0 to keep, -inf to drop) would be read the wrong way round.
        wrong = (mask != 0) & (mask != 1)
        if bool(wrong.any()):
            raise ValueError(f"`{name}` must be 0 or 1, but holds {float(mask[wrong][0])}.")


def check_stored_weights(
    names: Iterable[str], state_dict: Mapping[str, torch.Tensor] | None, files: Sequence[str] | None
) -> None:
    """Check weights as they are stored, in memory or in safetensors files, before they are cast.

    Args:
        names: The model's own; what is stored beside them is not read.
        state_dict: Weights in memory, if there are.
        files: Paths of files, if there are.

    Raises:
        ValueError: If one holds no floating-point numbers (names it).
    """
    # A head's checkpoint loads into its base and the other way round.
    own = {name.removeprefix("model.") for name in names}
    for name, tensor in (state_dict or {}).items():
        if name.removeprefix("model.") in own and not tensor.is_floating_point():
            raise ValueError(_wrong_weight(name, str(tensor.dtype)))
    for path in files or ():
        for name, dtype in stored_dtypes(path).items():
            if name.removeprefix("model.") in own and not dtype.startswith(("F", "BF")):
                raise ValueError(_wrong_weight(name, f"{dtype} in '{path}'"))


def _wrong_weight(name: str, dtype: str) -> str:
    return f"the weight `{name}` must be of floating-point numbers, but is of {dtype}."


def stored_dtypes(path: str) -> dict[str, str]:
    """Read the dtype of each tensor from a safetensors file's header; none from another file."""
    if not str(path).endswith(".safetensors"):
        return {}
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(size, _MAX_HEADER)))
        except ValueError:
            return {}  # damaged: who reads the tensors says how
    entries = header.items() if isinstance(header, dict) else ()
    return {name: str(entry["dtype"]) for name, entry in entries if "dtype" in entry}
