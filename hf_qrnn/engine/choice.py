"""Chooses what computes: the engine, which starts at once, or `generate()` in torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hf_qrnn.data.flags import typed
from hf_qrnn.data.same_tokenizers import DifferentTokenizersError

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


def choose_engine(engine: str, models: Sequence[str], device: str | None) -> Choice:
    """Load the engine, where it is wanted and can do what is asked.

    Nothing of torch is imported to find out.

    Args:
        engine: "auto", the engine where it can do what is asked and there is no GPU; "native", the
            engine in C++ or an error; or "torch".
        models: The models that are asked for; several are an ensemble.
        device: The device that is asked for.

    Raises:
        ValueError: If `engine` is "native" and the engine cannot do what is asked, or several
            models have different tokenizers.
    """
    require("engine", f"one of {', '.join(map(repr, ENGINES))}", engine, engine in ENGINES)
    is_wanted = engine == "native"
    if engine == "torch" or (engine == "auto" and device is None and may_have_gpu()):
        return Choice(None)
    fault = _fault(models, device)
    if fault is not None:
        if is_wanted:
            raise ValueError(fault)
        return Choice(None)
    try:
        with typed(path="model"):
            return Choice(Translator(*models, backend="native" if is_wanted else "auto"))
    # Of models that are no ensemble torch says the same.
    except DifferentTokenizersError:
        raise
    except (ValueError, OSError) as error:
        if is_wanted:
            # Fields of a config that are named like arguments are none.
            sentence = str(error).replace("`", "'")
            named = " and ".join(f"'{model}'" for model in models)
            rule = f"'auto' or 'torch' for {named}, but is 'native'"
            raise ValueError(f"`engine` must be {rule}: {sentence}") from error
        return Choice(None, str(error))


def may_have_gpu() -> bool:
    """Tell whether torch may find a GPU; only torch itself knows."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    # Elsewhere a driver is no file.
    return os.name != "posix" or any(os.path.exists(path) for path in _GPU_PATHS)


def _fault(models: Sequence[str], device: str | None) -> str | None:
    """Return the sentence of what the engine cannot do whatever the model, or None."""
    if device not in (None, "cpu"):
        return f"`device` must be cpu for the engine, but is {device!r}."
    for model in models:
        if not Path(model).is_dir():
            return f"`model` must be a folder for the engine, but is {model!r}."
    return None
