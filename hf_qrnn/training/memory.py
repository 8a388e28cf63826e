"""Keeps the memory of a long run on a CPU flat.

Batches have many shapes, and oneDNN makes a kernel for each shape of a product. It keeps 1,024 of
them, half a megabyte each, and torch as many again by names of its own. And they lie between the
tensors of an update, whose memory the C library then cannot join when it is freed: it takes more.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable

# Read once each, at the first product.
CACHE_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
# An update has about as many different products; with fewer it would make all of them anew.
KEPT_KERNELS = 32
# What is given back is mapped in again by the next update, which takes milliseconds.
UPDATES_BETWEEN = 20


def bound_kernel_caches() -> None:
    """Let oneDNN and torch keep few kernels, unless the environment says how many."""
    for name in CACHE_VARIABLES:
        given = os.environ.get(name, "").strip()
        # With none at all torch's cache ends the process.
        if not given or (given == "0" and name == "LRU_CACHE_CAPACITY"):
            os.environ[name] = str(KEPT_KERNELS)


def give_back(step: int) -> None:
    """Give freed memory back to the system after every `UPDATES_BETWEEN`-th update."""
    trim = _trimmer()
    if trim is not None and step % UPDATES_BETWEEN == 0:
        trim(0)


@functools.cache
def _trimmer() -> Callable[[int], int] | None:
    """Return `malloc_trim`, which glibc alone has."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim
