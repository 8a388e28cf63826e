"""Stores a translation model with int8 weights, without torch.

Every matrix becomes int8 with a scale for each row (one output unit, one token of the embedding),
under its own name and that name and `_scale`; biases and norms stay float32. The engine computes
with the integers; `from_pretrained` makes floats of them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_qrnn.data.json_files import read_text
from hf_qrnn.data.model_files import TOKENIZER_FILES, VOCABULARY_FILES

from .int8 import quantize_matrix
from .network import read_network
from .settings import read_settings, require
from .weights import INT8, SCALE, Array, Weights

_CODE = Path(__file__).resolve().parents[1] / "model"
_PIPELINE = "pipeline_qrnn.py"
_CARD = "README.md"
# Never what a run measured: these are other weights.
_CARRIED = (
    "generation_config.json", "LICENSE", "learning_curve.png", "attention.png", *TOKENIZER_FILES,
    *VOCABULARY_FILES,
)  # fmt: skip
_NOTE = (
    "> The weights in this folder are int8: `hf-qrnn quantize` made them of those that are "
    "described here. Every figure below was measured before, with the weights they were made of."
)


class Sizes(NamedTuple):
    """Bytes of the weights, those that were read and those that were written."""

    before: int
    after: int


def quantize(model: str | Path, output: str | Path) -> Sizes:
    """Store the model of a folder with int8 weights in a new folder, whole or not at all.

    Args:
        model: A folder as `save_pretrained` writes it, of floating-point weights.
        output: The new folder; it may be there if it is empty.

    Raises:
        ValueError: If `model` is no such folder, or the engine cannot do what its config says, or
            there is something in the place of `output`.
    """
    folder, target = Path(model), Path(output)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"`model` must be a folder with a saved translation model, but is {str(model)!r}."
        )
    _check_target(folder, target)
    settings, config = read_settings(folder)
    weights = Weights(folder)
    is_float = INT8 not in weights.dtypes.values()
    require("model", "a folder with floating-point weights", f"{model}, of int8", is_float)
    read_network(settings, weights)
    tensors = _quantized(weights)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".hf-qrnn-") as name:
        # Inside, a folder has the rights that new folders have; a temporary one is private.
        finished = Path(name) / "finished"
        finished.mkdir()
        _write(finished, folder, tensors, config)
        after = (finished / "model.safetensors").stat().st_size
        if target.is_dir():
            target.rmdir()
        finished.rename(target)
    return Sizes(sum(path.stat().st_size for path in weights.files), after)


def _check_target(folder: Path, target: Path) -> None:
    """Refuse a place for the new folder that is taken, inside the model, or nowhere."""
    inside = target.resolve().is_relative_to(folder.resolve())
    require("output", f"outside of the model's folder, '{folder}'", str(target), not inside)
    # It is put in the place of an empty folder, and a process does not lose the one it works in.
    is_here = target.is_dir() and target.samefile(".")
    require("output", "another folder than the one you are in", str(target), not is_here)
    is_empty = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
    rule = "a new folder or an empty one"
    require("output", rule, str(target), is_empty or not os.path.lexists(target))
    there = target.parent.is_dir()
    require("output", "in a folder that is there", str(target), there)


def _quantized(weights: Weights) -> dict[str, Array]:
    """Return all weights as they are stored, matrices as int8 with scales."""
    tensors: dict[str, Array] = {}
    for name, shape in weights.shapes.items():
        weight = weights.take(name, *shape)
        if not np.isfinite(weight).all():
            raise ValueError(f"The weight `{name}` must be of finite numbers, but is not.")
        if len(shape) == 2:
            matrix = quantize_matrix(weight)
            tensors[name], tensors[name + SCALE] = matrix.numbers, matrix.scales
        else:
            tensors[name] = np.ascontiguousarray(weight)
    return tensors


def _write(
    target: Path, folder: Path, tensors: Mapping[str, Array], config: Mapping[str, Any]
) -> None:
    """Write a whole model folder."""
    from safetensors.numpy import save_file

    # transformers asks who wrote the file.
    save_file(dict(tensors), target / "model.safetensors", metadata={"format": "pt"})
    # bfloat16, say, would round the products of integers and scales again.
    fields = {name: value for name, value in config.items() if name != "torch_dtype"}
    text = json.dumps({**fields, "dtype": "float32"}, indent=2, sort_keys=True)
    (target / "config.json").write_text(text + "\n", encoding="utf-8")
    for name in _CARRIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    if (folder / _CARD).is_file():
        (target / _CARD).write_text(_card(read_text(folder / _CARD)), encoding="utf-8")
    if "auto_map" not in config:
        return
    # The code of this release: that of an older one cannot read int8.
    for path in sorted(_CODE.glob("*_qrnn.py")):
        if path.name != _PIPELINE or (folder / _PIPELINE).is_file():
            shutil.copyfile(path, target / path.name)


def _card(text: str) -> str:
    """Say in a card that the weights are others, and take out the results that programs read."""
    front, rest = "", text
    found = re.match(r"---\n.*?^---\n", text, flags=re.DOTALL | re.MULTILINE)
    if found is not None:
        # The key and all lines up to the next key.
        key = re.compile(r"^model-index:.*?(?=^[\w-]+:|^---$)", flags=re.DOTALL | re.MULTILINE)
        front, rest = key.sub("", found[0]), text[found.end() :]
    return f"{front}\n{_NOTE}\n\n{rest.lstrip()}"
