"""Reads weights in the safetensors format, mapped from disk, as float32 or int8 with scales.

A file is a header's length (8 bytes), the header (JSON: names with dtype, shape and place), and the
numbers. Nothing in it is trusted.
"""

from __future__ import annotations

import copy
import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_qrnn.data.json_files import read_json

from .int8 import MOST_INNER, Int8Matrix

# Always float32; of what is computed from one, numpy cannot tell a type checker so.
Array = npt.NDArray[Any]
Matrix = Array | Int8Matrix

INT8 = "I8"
SCALE = "_scale"
"""Behind the name of an int8 matrix: the name of its rows' scales."""

_MOST_HEADER_BYTES = 100_000_000  # safetensors' own limit
# bfloat16 is the upper half of float32: numpy, which has none, reads it as integers.
_FLOATS = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2"}
_DTYPES = {**_FLOATS, INT8: "i1"}


class Weights:
    """The weights of a folder by name.

    Args:
        folder: A folder with model.safetensors, or with the index of several such files.

    Attributes:
        files: The files with weights.

    Raises:
        ValueError: If there are none or they are damaged.
    """

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        names = ["model.safetensors"]
        if not (folder / names[0]).is_file() and index.is_file():
            names = _shards(read_json(index))
        self._tensors: dict[str, tuple[str, npt.NDArray[Any]]] = {}
        self._maps: list[mmap.mmap] = []
        self.files = [folder / name for name in names]
        for name in names:
            mapped = _map_file(folder / name)
            if mapped is not None:
                self._maps.append(mapped)
            self._tensors.update(_read_file(folder / name, mapped))

    @property
    def are_halves(self) -> bool:
        """Tell whether all weights are of bfloat16, so that half the bytes are enough."""
        return all(dtype == "BF16" for dtype, _ in self._tensors.values())

    @property
    def dtypes(self) -> dict[str, str]:
        """The dtypes of all weights, as the file names them."""
        return {name: dtype for name, (dtype, _) in self._tensors.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all weights."""
        return {name: tensor.shape for name, (_, tensor) in self._tensors.items()}

    def copied(self) -> Weights:
        """Return the same weights in memory of their own: files that are mapped may change."""
        found = copy.copy(self)
        found._maps = []
        found._tensors = {
            name: (dtype, tensor.copy()) for name, (dtype, tensor) in self._tensors.items()
        }
        return found

    def release(self) -> None:
        """Give back the memory of the files; what is read again comes from disk again."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def take(self, name: str, *shape: int) -> Array:
        """Return a weight as float32; that of the file itself where it is float32.

        Raises:
            ValueError: If there is none of this shape.
        """
        dtype, tensor = self._find(name, shape)
        if dtype == "BF16":
            return (tensor.astype(np.uint32) << 16).view(np.float32)
        if dtype not in _FLOATS:
            raise ValueError(
                f"The weight `{name}` must be of one of {', '.join(_FLOATS)} for the engine, "
                f"but is of {dtype}."
            )
        return tensor.astype(np.float32, copy=False)

    def take_matrix(self, name: str, outer: int, inner: int) -> Matrix:
        """Return a matrix as `take` does, or in int8 with the scales of its rows.

        Raises:
            ValueError: If there is none of this shape, or its scales are missing or none.
        """
        dtype, numbers = self._find(name, (outer, inner))
        if dtype != INT8:
            return self.take(name, outer, inner)
        scales = self.take(f"{name}{SCALE}", outer)
        wrong = scales[~((scales > 0) & np.isfinite(scales))]
        if wrong.size:
            raise ValueError(
                f"The weight `{name}{SCALE}` must be finite and above 0, but holds {wrong[0]}."
            )
        matrix = Int8Matrix(numbers, scales)
        return matrix if inner <= MOST_INNER else matrix.dense()

    def _find(self, name: str, shape: tuple[int, ...]) -> tuple[str, npt.NDArray[Any]]:
        """Return the dtype and the numbers of a weight of this shape."""
        if name not in self._tensors:
            raise ValueError(f"The model must have the weight `{name}`, but has none.")
        dtype, tensor = self._tensors[name]
        if tensor.shape != shape:
            raise ValueError(
                f"The weight `{name}` must be of shape {list(shape)}, as its config says, "
                f"but is of {list(tensor.shape)}."
            )
        return dtype, tensor


def _shards(index: Mapping[str, Any]) -> list[str]:
    """Return the names of the files of an index; they lie beside it and nowhere else."""
    places = index.get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise ValueError(
            "`model.safetensors.index.json` must name files beside it, but is damaged."
        )
    return names


def _map_file(path: Path) -> mmap.mmap | None:
    """Map a file; None if it is empty, of which there is no map."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return None
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ValueError(f"The model must have weights, but there is no `{path.name}`.") from None


def _read_file(path: Path, mapped: mmap.mmap | None) -> dict[str, tuple[str, npt.NDArray[Any]]]:
    """Return the tensors of a mapped file with their dtypes' names."""
    data = np.empty(0, np.uint8) if mapped is None else np.frombuffer(mapped, np.uint8)
    length = int.from_bytes(data[:8].tobytes(), "little")
    if data.size < 8 or not 0 < length <= min(data.size - 8, _MOST_HEADER_BYTES):
        raise _damaged(path, "its header does not fit into the file")
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is no JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no JSON object")
    header.pop("__metadata__", None)
    body = data[8 + length :]
    return {name: _tensor(path, name, entry, body) for name, entry in header.items()}


def _tensor(
    path: Path, name: str, entry: Any, body: npt.NDArray[np.uint8]
) -> tuple[str, npt.NDArray[Any]]:
    """Return the tensor that an entry of the header describes."""
    fields = entry if isinstance(entry, dict) else {}
    # Any: of what a file says nothing is known.
    dtype: Any = fields.get("dtype")
    shape: Any = fields.get("shape")
    offsets: Any = fields.get("data_offsets")
    is_whole = isinstance(dtype, str) and _are_counts(shape) and _are_counts(offsets)
    if not is_whole or len(offsets) != 2 or not offsets[0] <= offsets[1] <= body.size:
        raise _damaged(path, f"its entry of `{name}` does not fit into the file")
    raw = body[offsets[0] : offsets[1]]
    # Of a shape with a 0 the other numbers may be any, and NumPy refuses some.
    if math.prod(max(x, 1) for x in shape) >= 2**62:
        raise _damaged(path, f"`{name}` has not as many numbers as its shape")
    if dtype not in _DTYPES:  # an error where it is a weight of the model
        return str(dtype), raw.reshape(shape) if math.prod(shape) == raw.size else raw
    if math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize != raw.size:
        raise _damaged(path, f"`{name}` has not as many numbers as its shape")
    # The format lets a number begin anywhere; numpy reads it there too.
    return dtype, raw.view(_DTYPES[dtype]).reshape(shape)


def _are_counts(values: Any) -> bool:
    # NumPy has no more dimensions.
    fits = isinstance(values, list) and len(values) <= 32
    return fits and all(type(x) is int and 0 <= x < 2**48 for x in values)


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"`{path.name}` must be a whole file of safetensors, but {what}.")
