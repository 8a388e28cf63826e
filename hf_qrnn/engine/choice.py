"""Chooses what computes: the engine, which starts at once, or `generate()` in torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hf_qrnn.data.flags import typed

from .settings import require
from .translator import Translator

ENGINES = ("auto", "native", "torch")
# There is one of them where a driver is: NVIDIA's, AMD's, and both under Windows' Linux.
_GPU_PATHS = ("/dev/nvidiactl", "/proc/driver/nvidia/gpus", "/dev/kfd", "/dev/dxg")


class Choice(NamedTuple):
    """The choice of what computes.

    Attributes:
        engine: The engine with the model; None where torch computes.
        refusal: Why the engine cannot compute this model; None where it can, or was not asked.
    """

    engine: Translator | None
    refusal: str | None = None


def choose_engine(
    engine: str, models: Sequence[str], device: str | None, others: Mapping[str, object]
) -> Choice:
    """Load the engine, where it is wanted and can do what is asked.

    Nothing of torch is imported to find out.

    Args:
        engine: "auto", the engine where it can do what is asked and there is no GPU; "native", the
            engine in C++ or an error; or "torch".
        models: The models that are asked for.
        device: The device that is asked for.
        others: Values of arguments for which torch is needed, where they are not None.

    Raises:
        ValueError: If `engine` is "native" and the engine cannot do what is asked.
    """
    require("engine", f"one of {', '.join(map(repr, ENGINES))}", engine, engine in ENGINES)
    is_wanted = engine == "native"
    if engine == "torch" or (engine == "auto" and device is None and may_have_gpu()):
        return Choice(None)
    fault = _fault(models, device, others)
    if fault is not None:
        if is_wanted:
            raise ValueError(fault)
        return Choice(None)
    try:
        with typed(path="model"):
            return Choice(Translator(models[0], backend="native" if is_wanted else "auto"))
    except (ValueError, OSError) as error:
        if is_wanted:
            # Fields of a config that are named like arguments are none.
            sentence = str(error).replace("`", "'")
            rule = f"'auto' or 'torch' for '{models[0]}', but is 'native'"
            raise ValueError(f"`engine` must be {rule}: {sentence}") from error
        return Choice(None, str(error))


def may_have_gpu() -> bool:
    """Tell whether torch may find a GPU; only torch itself knows."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    # Elsewhere a driver is no file.
    return os.name != "posix" or any(os.path.exists(path) for path in _GPU_PATHS)


def _fault(models: Sequence[str], device: str | None, others: Mapping[str, object]) -> str | None:
    """Return the sentence of what the engine cannot do whatever the model, or None."""
    if len(models) > 1:
        return f"`model` must be one for the engine, but is {len(models)} models."
    for name, value in others.items():
        if value is not None:
            return f"`{name}` must be left out with the engine, but is {value!r}."
    if device not in (None, "cpu"):
        return f"`device` must be cpu for the engine, but is {device!r}."
    if not Path(models[0]).is_dir():
        return f"`model` must be a folder for the engine, but is {models[0]!r}."
    return None
