"""Chooses the code that pools: native (the compiled library), Triton or torch.

All three compute what `pool_equations_qrnn.py` defines (Eqs. 3 to 6 of arXiv 1611.01576), each with
its own rounding. The first that works on the device is taken:

    CUDA    native, triton, torch
    CPU     native, torch
    others  torch

One of them is forced by `use_backend`, else by the environment variable HF_QRNN_BACKEND, else by a
config's `pool_backend`. A forced one that does not work is an error.

`triton_qrnn.py` and `triton_connect_qrnn.py` are imported where they are first wanted: importing
Triton takes half a second.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from .pool_equations_qrnn import torch_backward, torch_forward
from .pool_kinds_qrnn import POOL_KINDS

BACKENDS = ("native", "triton", "torch")
ALIASES = {"compiled": "native"}  # of release 0.1.0: saved configs and scripts have it
AS_BEFORE = {new: old for old, new in ALIASES.items()}
VARIABLE = "HF_QRNN_BACKEND"

Forward = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]
Backward = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


class Backend(NamedTuple):
    """One implementation of pooling: its forward and its backward pass.

    Both are called with the arguments of the definition and return what it returns.

    Attributes:
        name: One of `BACKENDS`.
        forward: As `torch_forward` of `pool_equations_qrnn.py`.
        backward: As `torch_backward` there.
    """

    name: str
    forward: Forward
    backward: Backward


# By speed, the fastest first.
_LADDERS = {"cuda": ("native", "triton", "torch"), "cpu": ("native", "torch")}
_KERNEL_DTYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Pool by backend `name` for the length of a `with` block, in the whole process.

    Args:
        name: "native", "triton", "torch", or "auto" for the first that works.

    Raises:
        ValueError: If `name` is none of these.
    """
    _check_name("name", name)
    # An environment variable, not a Python variable: the package and a model folder have a copy of
    # this file each, and both read it. Copies of 0.1.0 know "native" by its alias alone. It is read
    # when the operation runs, also in autograd's threads, and never while a graph is compiled.
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = AS_BEFORE.get(name, name)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def choose(wanted: str, device: torch.device, dtype: torch.dtype, pooling: str) -> Backend:
    """Choose the backend for gates of `dtype` on `device`.

    Args:
        wanted: A config's `pool_backend`: a name of `BACKENDS`, an alias, or "auto".
        device: Of the gates.
        dtype: Of the gates.
        pooling: A name of `POOL_KINDS`; a backend without code for it is passed by.

    Raises:
        ValueError: If `wanted` or the environment variable names no backend.
        RuntimeError: If a forced backend does not work there; the sentence says why.
    """
    forced = os.environ.get(VARIABLE)
    return _choose(VARIABLE if forced else "backend", forced or wanted, device, dtype, pooling)


# Cached, since it is asked at every call of every layer.
@functools.cache
def _choose(
    source: str, name: str, device: torch.device, dtype: torch.dtype, pooling: str
) -> Backend:
    _check_name(source, name)
    name = ALIASES.get(name, name)
    if name == "auto":
        ladder = _LADDERS.get(device.type, ("torch",))
        # No kernel has code for 8-bit floats, say; torch computes in whatever it can.
        ladder = ladder if dtype in _KERNEL_DTYPES else ("torch",)
        return backend_named(_first_of(ladder, device, pooling))
    reason = _why_not(name, device, pooling)
    if reason is not None:
        raise RuntimeError(
            f"`{source}` must be available on {device.type}, but {name!r} is not: {reason}."
        )
    return backend_named(name)


def _first_of(ladder: tuple[str, ...], device: torch.device, pooling: str) -> str:
    """Return the first backend of `ladder` that works; warn if that is a slow one on a GPU."""
    reasons = []
    for name in ladder:
        reason = _why_not(name, device, pooling)
        if reason is None:
            break
        reasons.append(f"{name}: {reason}")
    if reasons and name == "torch" and device.type == "cuda":
        warnings.warn(
            f"Pooling on {device} is slow, for want of a kernel. " + "; ".join(reasons),
            stacklevel=2,
        )
    return name


def _why_not(name: str, device: torch.device, pooling: str) -> str | None:
    """Say why a backend cannot pool there, or return None if it can."""
    reason = unavailable(name, device)
    if reason is None and not _knows(name, pooling):
        reason = f"it does not know {pooling!r} pooling"
    return reason


def _knows(name: str, pooling: str) -> bool:
    """Tell whether an available backend has code for a pooling kind; torch has it for all."""
    if name == "triton":
        return POOL_KINDS[pooling].in_triton
    # The library may be of another release than this file.
    return name == "torch" or pooling in _kernels().POOLING_NUMBERS


def _check_name(source: str, name: str) -> None:
    if name not in ("auto", *BACKENDS, *ALIASES):
        names = ", ".join(repr(known) for known in ("auto", *BACKENDS))
        raise ValueError(f"`{source}` must be one of {names}, but is {name!r}.")


def unavailable(name: str, device: torch.device) -> str | None:
    """Say why backend `name` cannot pool on `device`, with the cure, or return None if it can."""
    if name == "torch":
        return None
    if name == "triton":
        from .triton_qrnn import why_unavailable

        return why_unavailable(device)
    module = _kernels()  # or the reason why there is none
    reason: str | None = module if isinstance(module, str) else module.unavailable(device)
    return reason


@functools.cache
def _kernels() -> Any:
    """Import the package's module of compiled kernels, or say why there is none."""
    try:
        import hf_qrnn.kernels
    except ImportError as error:
        return f"the package hf_qrnn is not installed ({error})"
    return hf_qrnn.kernels


# ------------------------------------------------------------------ the three


@functools.cache
def backend_named(name: str) -> Backend:
    """Return the backend `name`, whether or not it works here."""
    if name == "triton":
        from .triton_qrnn import pool_backward, pool_forward

        return Backend(name, pool_forward, pool_backward)
    if name == "torch":
        return Backend(name, torch_forward, torch_backward)
    return Backend("native", _native_forward, _native_backward)


def _native_forward(*arguments: Any) -> Any:
    """Pool by the compiled library, which takes the pooling kind as a number."""
    *tensors, pooling, zoneout, reverse, want_c, want_tiles = arguments
    module = _kernels()
    number = module.POOLING_NUMBERS[pooling]
    operation = module.operation("pool_forward")
    return operation(*tensors, number, zoneout, reverse, want_c, want_tiles)


def _native_backward(*arguments: Any) -> Any:
    """Compute the gradients by the compiled library."""
    *tensors, pooling, zoneout, reverse = arguments
    module = _kernels()
    number = module.POOLING_NUMBERS[pooling]
    return module.operation("pool_backward")(*tensors, number, zoneout, reverse)


# ------------------------------------------------------------------ the connection around a layer


class ConnectionKernels(NamedTuple):
    """The operations `connect_forward` and `connect_backward` of the native library or Triton."""

    forward: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    backward: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def connection_kernels(device: torch.device) -> ConnectionKernels | None:
    """Return the kernels of `connect_qrnn.py` for `device`; None where the definition serves.

    Raises:
        ValueError: If the environment variable names no backend.
        RuntimeError: If a backend that it forces does not work there; the sentence says why.
    """
    return _connection(os.environ.get(VARIABLE) or "auto", device)


@functools.cache
def _connection(name: str, device: torch.device) -> ConnectionKernels | None:
    _check_name(VARIABLE, name)
    ladder = _LADDERS.get(device.type, ("torch",))
    if name == "auto":
        found = (_connection_by(step, device) for step in ladder if step != "torch")
        # Silent where there is none: pooling says what is slow, and why.
        return next((kernels for kernels in found if not isinstance(kernels, str)), None)
    name = ALIASES.get(name, name)
    # A device without kernels at all, like "meta", has the definition alone.
    if name == "torch" or ladder == ("torch",):
        return None
    kernels = _connection_by(name, device)
    if isinstance(kernels, str):
        raise RuntimeError(
            f"`{VARIABLE}` must be available on {device.type}, but {name!r} is not: {kernels}."
        )
    return kernels


def _connection_by(name: str, device: torch.device) -> ConnectionKernels | str:
    """Return the kernels of one backend, or why it has none on `device`."""
    reason = unavailable(name, device)
    if reason is not None:
        return reason
    if name == "triton":
        from .triton_connect_qrnn import connect_backward, connect_forward

        return ConnectionKernels(connect_forward, connect_backward)
    try:
        forward, backward = map(_kernels().operation, ("connect_forward", "connect_backward"))
    except AttributeError:  # the library is of a release that has none
        return "it has no kernels of the connection around a layer"
    return ConnectionKernels(forward, backward)


# ------------------------------------------------------------------ a decoder's step


def pooling_number(pooling: str) -> int:
    """Return what the native library calls a pooling kind; -1 where it does not know it."""
    numbers: dict[str, int] = getattr(_kernels(), "POOLING_NUMBERS", {})
    return numbers.get(pooling, -1)


@functools.cache
def step_operation() -> Callable[..., list[torch.Tensor]] | None:
    """Return the native library's `decoder_step`; None if it is of a release without it.

    `choose` has said that the library works.
    """
    try:
        operation: Callable[..., list[torch.Tensor]] = _kernels().operation("decoder_step")
    except AttributeError:
        return None
    return operation
