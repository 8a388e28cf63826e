"""What a checkpoint needs of a running process, as tensors and JSON: weights, optimiser, chance.

Weights and optimiser state are read and set whole on every process, whatever wraps the model (DDP,
FSDP, torch.compile); every process must call these functions together.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


def full_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights by name, each storage once, on the CPU.

    A plain model's tensors on the CPU are not copied: they change with the next update. Those of a
    sharded model reach the first process alone, the others get nothing.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=_is_sharded(model))
    weights: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    content: dict[str, Any] = get_model_state_dict(model, options=options)
    for name, tensor in content.items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() == 0 or key not in seen:
            weights[name] = tensor.detach().cpu().contiguous()
        seen.add(key)
    return weights


def first_not_finite(weights: Mapping[str, torch.Tensor]) -> str | None:
    """The name of a tensor with an infinity or NaN in it."""
    return next((name for name, x in weights.items() if not bool(x.isfinite().all())), None)


def set_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Set all weights; a tied name may be absent. A sharded model takes the first process's.

    Raises:
        ValueError: If a name or a shape is not the model's.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

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
    """The optimiser's state as "exp_avg/model.shared.weight" and so on, on the CPU."""
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
    """The states of this process's generators: torch, CUDA (if in use), Python, numpy."""
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
    """Set the states that `random_state` read."""
    torch.set_rng_state(tensors["torch"])
    gauss = tensors["python_gauss"].tolist()
    random.setstate((3, tuple(tensors["python"].tolist()), gauss[0] if gauss else None))
    position, has_gauss, cached = tensors["numpy_gauss"].tolist()
    keys = np.array(tensors["numpy"].tolist(), dtype=np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], device)


def _is_sharded(model: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    kinds = (FSDPModule, FullyShardedDataParallel)
    return any(isinstance(module, kinds) for module in model.modules())


def _inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser inside Accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=_is_sharded(model))
    content: dict[str, Any] = get_optimizer_state_dict(model, _inner(optimizer), options=options)
    return content
