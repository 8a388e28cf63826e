"""Chooses what computes for a command: the engine, which starts at once, or `generate()`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_qrnn.data.flags import typed

if TYPE_CHECKING:
    from hf_qrnn.engine import Translator

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

    def tell_refusal(self) -> None:
        """Say on standard error why torch computes, where that is because of the model."""
        # Once the model is loaded: of one that nothing can load, one sentence is enough.
        if self.refusal is not None:
            print(f"generate() computes, since the engine cannot: {self.refusal}", file=sys.stderr)


def add_engine(add: Any) -> None:
    """Add the flag of the engine to a command, by its `add_argument`."""
    text = (
        "native: compute on the CPU without torch, which starts at once; torch: by generate(); "
        "auto: native where it can do what is asked and there is no GPU (default: auto)"
    )
    add("--engine", metavar="E", choices=ENGINES, default="auto", help=text)


def choose_engine(
    engine: str, models: Sequence[str], device: str | None, others: Mapping[str, object]
) -> Choice:
    """Load the engine, where it is wanted and can do what is asked.

    Nothing of torch is imported to find out.

    Args:
        engine: "auto"; "native", the engine in C++ or an error; or "torch".
        models: The models that are asked for.
        device: The device that is asked for.
        others: Values of flags for which torch is needed, where they are not None.

    Raises:
        ValueError: If `engine` is "native" and the engine cannot do what is asked.
    """
    is_wanted = engine == "native"
    if engine == "torch" or (engine == "auto" and device is None and may_have_gpu()):
        return Choice(None)
    fault = _fault(models, device, others)
    if fault is not None:
        if is_wanted:
            raise ValueError(fault)
        return Choice(None)
    from hf_qrnn.engine import Translator

    try:
        with typed(path="model"):
            found = Translator(models[0], backend="native" if is_wanted else "auto")
    except (ValueError, OSError) as error:
        if is_wanted:
            # Fields of a config that are named like flags are none.
            sentence = str(error).replace("`", "'")
            rule = f"auto or torch for '{models[0]}', but is 'native'"
            raise ValueError(f"`engine` must be {rule}: {sentence}") from error
        return Choice(None, str(error))
    if found.reason is not None:
        print(f"the engine computes in NumPy, which is slower: {found.reason}", file=sys.stderr)
    return Choice(found)


def may_have_gpu() -> bool:
    """Tell whether torch may find a GPU; only torch itself knows."""
    hidden = ("", "-1")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in hidden:
        return False
    # Elsewhere a driver is no file.
    return os.name != "posix" or any(os.path.exists(path) for path in _GPU_PATHS)


def _fault(models: Sequence[str], device: str | None, others: Mapping[str, object]) -> str | None:
    """Return the sentence of what the engine cannot do whatever the model, or None."""
    if len(models) > 1:
        return f"`model` must be one with --engine native, but is {len(models)} models."
    for name, value in others.items():
        if value is not None:
            return f"`{name}` must be left out with --engine native, but is {value!r}."
    if device not in (None, "cpu"):
        return f"`device` must be cpu with --engine native, but is {device!r}."
    if not Path(models[0]).is_dir():
        return f"`model` must be a folder with --engine native, but is {models[0]!r}."
    return None
