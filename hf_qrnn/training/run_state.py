"""Reads and sets the state of a run: weights, optimiser state, random-number generators.

All of it is tensors by name, as a checkpoint holds them. Weights and optimiser state are read and
set whole, whatever wraps the model (DDP, FSDP, torch.compile). Every process must call these
functions together.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn


def full_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all weights by name, each storage once, on the CPU.

    A plain model's tensors on the CPU are not copied: they change with the next update. Those of a
    sharded model reach the first process alone, the others get nothing.
    """
    # Imported where it is used: it takes most of a second, which `--help` need not wait for.
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    # A full copy of a sharded model may not fit on a GPU.
    options = StateDictOptions(full_state_dict=True, cpu_offload=_is_sharded(model))
    weights: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    content: dict[str, Any] = get_model_state_dict(model, options=options)
    for name, tensor in content.items():
        # Tied weights are one storage under two names: safetensors refuses to save it twice.
        # Tensors without elements have no storage, and would all be taken for the same.
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() == 0 or key not in seen:
            weights[name] = tensor.detach().cpu().contiguous()
        seen.add(key)
    return weights


def first_not_finite(weights: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of the first tensor with an infinity or NaN in it, or None."""
    return next((name for name, x in weights.items() if not bool(x.isfinite().all())), None)


def set_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Set all weights; of names that are tied, one is enough.

    A sharded model takes those of the first process, whatever the others give.

    Raises:
        ValueError: If a name or a shape is not the model's.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    # Not left to torch: `strict` would refuse the absent name of a tied weight.
    own = full_weights(model)
    sharded = _is_sharded(model)
    for name in () if sharded and not own else own.keys() | weights.keys():
        shape = tuple(weights[name].shape) if name in weights else None
        wanted = tuple(own[name].shape) if name in own else None
        if shape != wanted:
            raise ValueError(f"`weights` must have {name!r} of shape {wanted}, but have {shape}.")
    options = StateDictOptions(full_state_dict=True, strict=False, broadcast_from_rank0=sharded)
    set_model_state_dict(model, dict(weights), options=options)


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Return the optimiser's state as "exp_avg/model.shared.weight" and so on, on the CPU."""
    # By the names of parameters; an optimiser's own state is by their places in its groups.
    content = _optimizer_state(model, optimizer)
    return {
        f"{key}/{name}": value.detach().cpu().contiguous()
        for name, values in content.get("state", {}).items()
        for key, value in values.items()
    }


def set_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Set the optimiser's state; rates and decays stay those of `optimizer`."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    content = _optimizer_state(model, optimizer)
    if not _inner(optimizer).state:
        return  # as SGD without momentum, which keeps nothing; torch would look for its device
    if content:  # empty where another process holds what is set
        content["state"] = {name: {} for name in content["state"]}
        for key, tensor in tensors.items():
            kind, name = key.split("/", 1)
            content["state"][name][kind] = tensor
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=_is_sharded(model))
    set_optimizer_state_dict(
        model,
        _inner(optimizer),
        optim_state_dict=content,
        options=options,
    )


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of this process's generators: torch, CUDA (if in use), Python, numpy."""
    # Python and numpy have Mersenne Twisters: words, the place of the next one, and a normal
    # number that was drawn with the last and not given out yet. The words are unsigned and of 32
    # bits, so int64 holds them.
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor(np.asarray(keys).tolist(), dtype=torch.int64),
        "numpy_gauss": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
    }
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def set_random_state(tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Set the states that `random_state` returned."""
    torch.set_rng_state(tensors["torch"])
    gauss = tensors["python_gauss"].tolist()
    random.setstate((3, tuple(tensors["python"].tolist()), gauss[0] if gauss else None))
    position, has_gauss, cached = tensors["numpy_gauss"].tolist()
    keys = np.array(tensors["numpy"].tolist(), dtype=np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], device)


class Carried(Protocol):
    """The state that a process carries from batch to batch, beside the model."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Give it, for a checkpoint."""

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take what `state_dict` gave."""


def by_rank(each: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Join the tensors of every process, by rank, under names of their own."""
    return {f"{rank}/{name}": x for rank, own in enumerate(each) for name, x in own.items()}


def of_rank(rank: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take one process's tensors out of what `by_rank` joined."""
    own = f"{rank}/"
    return {name.removeprefix(own): x for name, x in tensors.items() if name.startswith(own)}


def _is_sharded(model: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    kinds = (FSDPModule, FullyShardedDataParallel)
    return any(isinstance(module, kinds) for module in model.modules())


def _inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimiser inside Accelerate's wrapper, which torch's functions do not know."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=_is_sharded(model))
    content: dict[str, Any] = get_optimizer_state_dict(model, _inner(optimizer), options=options)
    return content
