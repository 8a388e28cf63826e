"""The files of a model folder that a push sends: a fixed list of names, no link out of the folder.

What a file says is no reason to open another: the list is fixed, and the code is what the fixed
entries of `auto_map` need, followed by its flat relative imports.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

from hf_qrnn.data.json_files import read_json, read_json_lines, read_text
from hf_qrnn.data.model_files import TOKENIZER_FILES, VOCABULARY_FILES
from hf_qrnn.model.modeling_qrnn import AUTO_MAP

VERIFICATION_FILE = "verification.safetensors"
"""Inputs and the logits the model gave for them when it was pushed."""
CUSTOM_GENERATE = "custom_generate/generate.py"
"""Where transformers looks for a search of the model's own, which a push adds to a translator."""

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONFIGS = ("config.json", "generation_config.json")
# What a training run adds for its readers.
_RECORDS = (
    "README.md", "LICENSE", "run.json", "metrics.jsonl", "test.json", "learning_curve.png",
    "attention.png", "states.png",
)  # fmt: skip
_CODE = re.compile(r"\w+_qrnn\.py")
_PIPELINE = "pipeline_qrnn"
_RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import", re.MULTILINE)


def kind_of(name: str) -> str | None:
    """Name the kind of a model's file: "weights", "config", "tokenizer" or "code"; None for others.

    These names belong to a push: it removes those that an earlier push left.
    """
    if name in (_WEIGHTS, _INDEX) or _SHARD.fullmatch(name):
        return "weights"
    if name == CUSTOM_GENERATE:
        return "code"
    if name in _CONFIGS:
        return "config"
    if name in TOKENIZER_FILES or name in VOCABULARY_FILES:
        return "tokenizer"
    return "code" if _CODE.fullmatch(name) else None


def put_custom_generate(folder: Path) -> None:
    """Put this release's search by the engine beside a translator.

    No requirements file: transformers would refuse to load the model where the package is missing.
    """
    target = folder / CUSTOM_GENERATE
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(Path(__file__).with_name("custom_generate.py"), target)


def may_be_shared(name: str) -> bool:
    """Tell whether a push sends a file of this name: the model needs it or a reader wants it."""
    return kind_of(name) is not None or name in _RECORDS


def shared_files(folder: Path) -> list[Path]:
    """List the files that a push sends of a folder, which must be a complete model.

    Only files are read whose names are fixed; the folder itself may be a link.

    Raises:
        ValueError: If something is missing or damaged, or a file is a link that leaves the folder.
    """
    if not folder.is_dir():
        raise ValueError(f"`MODEL` must be a folder with a saved model, but is {str(folder)!r}.")
    there = {path.name for path in folder.iterdir()}
    names = there & {*_RECORDS, *_CONFIGS, *TOKENIZER_FILES}
    if "tokenizer.json" not in there:
        names |= there & set(VOCABULARY_FILES)
    for name in sorted(names):
        _check_file(folder, name)
    config = _checked_config(folder)
    for name in sorted(names):
        if name.endswith(".json"):
            read_json(folder / name)
        elif name.endswith(".jsonl"):
            read_json_lines(folder / name)
    names |= _code(folder, config) | _weights(folder)
    if "tokenizer_config.json" not in there:
        raise _incomplete(folder, "lacks tokenizer_config.json")
    return [folder / name for name in sorted(names)]


def _incomplete(folder: Path, lack: str) -> ValueError:
    return ValueError(
        f"`MODEL` must hold a model as `save_pretrained` writes it, but {str(folder)!r} {lack}."
    )


def _check_file(folder: Path, name: str) -> None:
    """Refuse what is no file, or lies elsewhere: a link could publish any file of the machine."""
    path, root = folder / name, Path(os.path.realpath(folder))
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(root):
        raise ValueError(
            f"`MODEL` must hold no link that leaves the folder, but {name!r} leads to "
            f"{str(real)!r}: copy the file there if it is to be sent."
        )
    try:
        mode = real.stat().st_mode
    except OSError as error:
        raise ValueError(f"`MODEL` must hold files, but {name!r} leads nowhere.") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise ValueError(f"`MODEL` must hold plain files, but {name!r} is {kind}.")


def _checked_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise _incomplete(folder, "lacks config.json")
    config = read_json(folder / "config.json")
    if config.get("model_type") != "qrnn":
        found = config.get("model_type")
        raise _incomplete(folder, f"has the model_type {found!r} instead of 'qrnn'")
    if config.get("auto_map") != AUTO_MAP:
        raise _incomplete(folder, "has no full `auto_map` in its config.json")
    return config


def _code(folder: Path, config: dict[str, Any]) -> set[str]:
    """List the modules that the Auto classes need and, if a pipeline was saved, its module.

    A release may have had other modules than this one: what counts is what the folder's own code
    imports. No other module in the folder is sent.
    """
    wanted: dict[str, set[str]] = {}  # classes by module
    for entry in AUTO_MAP.values():
        module, class_name = entry.split(".")
        wanted.setdefault(module, set()).add(class_name)
    if config.get("custom_pipelines") and os.path.lexists(folder / f"{_PIPELINE}.py"):
        wanted[_PIPELINE] = set()
    needed, seen = set(wanted), set[str]()
    while needed - seen:
        module = min(needed - seen)
        seen.add(module)
        name = f"{module}.py"
        if not os.path.lexists(folder / name):
            raise _incomplete(folder, f"lacks the code {name}")
        _check_file(folder, name)
        source = read_text(folder / name)
        lacking = sorted(wanted.get(module, set()) - _classes(source, name))
        if lacking:
            raise ValueError(f"`{name}` must define {lacking[0]}, but does not.")
        imported = set(_RELATIVE_IMPORT.findall(source))
        foreign = sorted(part for part in imported if not _CODE.fullmatch(f"{part}.py"))
        if foreign:
            raise ValueError(
                f"`{name}` must import modules of ours (*_qrnn) alone by relative imports, but "
                f"imports {foreign[0]!r}."
            )
        needed |= imported
    return {f"{module}.py" for module in seen}


def _classes(source: str, name: str) -> set[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"`{name}` must be Python, but is damaged: {error}.") from error
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def _weights(folder: Path) -> set[str]:
    """List the one weights file, or the index and its shards, as transformers chooses."""
    if os.path.lexists(folder / _WEIGHTS) or not os.path.lexists(folder / _INDEX):
        names = {_WEIGHTS}
    else:
        _check_file(folder, _INDEX)
        weight_map = read_json(folder / _INDEX).get("weight_map")
        shards = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if not shards:
            raise ValueError(f"`{_INDEX}` must have a `weight_map` of shards, but has none.")
        for shard in shards:
            if not (isinstance(shard, str) and _SHARD.fullmatch(shard)):
                raise ValueError(f"`{_INDEX}` must name shards of weights, but names {shard!r}.")
        names = {_INDEX, *shards}
    for name in sorted(names):
        if not os.path.lexists(folder / name):
            raise _incomplete(folder, f"lacks {name}")
        _check_file(folder, name)
    return names
