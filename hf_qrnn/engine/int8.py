"""Matrices of int8 with a scale for each row, and products with them.

A weight is its integer times the scale of its row (one output unit). A row x of the other factor
becomes integers when it comes, round(x 127 / max |x|), with one scale of its own. Sums of products
of integers are exact, here as in C++ on every CPU.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]

MOST_INNER = 2**15
"""The longest row of an int8 product; C++ has the same bound."""

_LARGEST = np.float32(127)
# A row whose largest number is smaller is 0: the inverse could be infinite.
_LEAST = np.float32(1e-30)
# So many products at most are less than 2^24, to which float32 counts.
_EXACT = 1024


class Int8Matrix:
    """A matrix (outer, inner) of int8 `numbers` with `scales` (outer)."""

    def __init__(self, numbers: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> None:
        self.numbers, self.scales = numbers, scales

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (outer, inner)."""
        return self.numbers.shape

    def dense(self) -> npt.NDArray[np.float32]:
        """Compute the weights as float32."""
        dense: npt.NDArray[np.float32] = self.numbers * self.scales[:, None]
        return dense

    def split(self) -> tuple[Int8Matrix, Int8Matrix]:
        """Split the rows into two halves."""
        half = len(self.scales) // 2
        above = Int8Matrix(self.numbers[:half], self.scales[:half])
        return above, Int8Matrix(self.numbers[half:], self.scales[half:])

    @functools.cached_property
    def _wide(self) -> npt.NDArray[np.float32]:
        # NumPy multiplies floats by a library and integers by a loop.
        return self.numbers.astype(np.float32)

    def sums(self, numbers: _Array) -> npt.NDArray[np.int32]:
        """Compute the exact sums (..., outer) of products of integers (..., inner), of float32."""
        inner = self.shape[1]
        total = np.zeros((*numbers.shape[:-1], self.shape[0]), np.int32)
        for at in range(0, inner, _EXACT):
            part = numbers[..., at : at + _EXACT] @ self._wide[:, at : at + _EXACT].T
            total += part.astype(np.int32)
        return total


class Rounded(NamedTuple):
    """Rows as integers (..., inner), stored in float32, and their scales (..., 1)."""

    numbers: _Array
    scales: _Array


def round_rows(x: _Array) -> Rounded:
    """Make rows (..., inner) integers in [-127, 127]; the scale of one with NaN or inf is NaN."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    is_finite = np.isfinite(largest)
    is_seen = is_finite & (largest >= _LEAST)
    some = np.where(is_seen, largest, _LARGEST)
    numbers = np.rint(np.where(is_seen, x, np.float32(0)) * (_LARGEST / some))
    scales = np.where(is_seen, some / _LARGEST, np.float32(0))
    return Rounded(numbers, np.where(is_finite, scales, np.float32(np.nan)))


def quantize_matrix(weight: npt.NDArray[np.float32]) -> Int8Matrix:
    """Round a matrix (outer, inner) of finite numbers to the nearest int8 of its rows' scales."""
    scales = np.abs(weight).max(axis=1, initial=0) / _LARGEST
    scales[scales < np.float32(1e-38)] = 1.0  # of rows of zeros, and of what is nothing
    numbers = np.clip(np.rint(weight / scales[:, None]), -_LARGEST, _LARGEST)
    return Int8Matrix(numbers.astype(np.int8), scales)


def times(x: _Array, matrix: _Array | Int8Matrix) -> _Array:
    """Multiply rows x (..., inner) with the transpose of a matrix (outer, inner)."""
    if not isinstance(matrix, Int8Matrix):
        plain: _Array = x @ matrix.T
        return plain
    numbers, scales = round_rows(x)
    result: _Array = matrix.sums(numbers).astype(np.float32) * (matrix.scales * scales)
    return result
