"""Enters our names in the tables of torch and transformers, when somebody imports these.

Importing `hf_qrnn` imports neither. `watch` puts a finder before Python's own: a module that has a
table is loaded as always, and gets our entries before whoever imported it goes on. One that was
imported before gets them at once.

An entry imports nothing that its module does not need itself, because it is made in the middle of
other imports: more would be a circle for packages that transformers imports and that import torch,
as Accelerate does, and a lock that another thread holds. So the Auto classes get our models by
name, and import them when one is looked up.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple


class _Head(NamedTuple):
    """The `Registration` of a head, known before its class is imported.

    Attributes:
        name: The class.
        auto_class: The Auto class that loads it.
        names: transformers' table of models of its kind.
    """

    name: str
    auto_class: str
    names: str | None = None


HEADS = (
    _Head("QRNNModel", "AutoModel"),
    _Head(
        "QRNNForConditionalGeneration",
        "AutoModelForSeq2SeqLM",
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    ),
    _Head("QRNNForCausalLM", "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    _Head(
        "QRNNForSequenceClassification",
        "AutoModelForSequenceClassification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    ),
)
"""The heads, as modeling_qrnn.py states them; a test compares both."""


# ------------------------------------------------------------------ entries


def _enter_operations(torch: ModuleType) -> None:
    """Register the operations and `QRNNState` with torch."""
    import hf_qrnn.layer
    import hf_qrnn.model.pooling_qrnn  # noqa: F401


def _enter_cache(_: ModuleType) -> None:
    """Register `QRNNCache` with torch."""
    import hf_qrnn.model.cache_qrnn  # noqa: F401


def _enter_config(configuration_auto: ModuleType) -> None:
    from hf_qrnn.model.configuration_qrnn import QRNNConfig

    configuration_auto.AutoConfig.register("qrnn", QRNNConfig, exist_ok=True)


def _enter_models(modeling_auto: ModuleType) -> None:
    from hf_qrnn.model.configuration_qrnn import QRNNConfig

    for head in HEADS:
        if head.names is not None:  # `register` does not reach it
            getattr(modeling_auto, head.names).setdefault("qrnn", head.name)
        auto = getattr(modeling_auto, head.auto_class)
        # Here `register` would put the class, and want it now.
        table = getattr(auto, "_model_mapping", None)
        entries = getattr(table, "_extra_content", None)
        if table is not None and isinstance(entries, dict):
            table._extra_content = entries = _Entries(entries)
        if isinstance(entries, _Entries):
            entries[QRNNConfig] = _Later(head.name)
        else:  # a transformers that keeps them elsewhere
            auto.register(QRNNConfig, _Later(head.name).load(), exist_ok=True)


def _enter_task(pipelines: ModuleType) -> None:
    # Else it makes the entry at its end, and may be waiting for `pipelines` in another thread.
    if not _is_being_imported("hf_qrnn.model.pipeline_qrnn"):
        _register_task(pipelines)


def _register_task(pipelines: ModuleType) -> None:
    from transformers import AutoModelForSeq2SeqLM

    from hf_qrnn.model.pipeline_qrnn import TASK, QRNNTranslationPipeline

    registry = pipelines.PIPELINE_REGISTRY
    if TASK not in registry.get_supported_tasks():
        registry.register_pipeline(
            TASK,
            pipeline_class=QRNNTranslationPipeline,
            pt_model=AutoModelForSeq2SeqLM,
            type="text",
        )


def _enter_own_task(_: ModuleType) -> None:
    _register_task(sys.modules["transformers.pipelines"])


_ENTRIES: dict[str, Callable[[ModuleType], None]] = {
    "torch": _enter_operations,
    # A saved program may hold a cache, and is read by this module.
    "torch._export.serde.serialize": _enter_cache,
    "transformers.cache_utils": _enter_cache,
    "transformers.models.auto.configuration_auto": _enter_config,
    "transformers.models.auto.modeling_auto": _enter_models,
    "transformers.pipelines": _enter_task,
    "hf_qrnn.model.pipeline_qrnn": _enter_own_task,
}


class _Later(NamedTuple):
    """A model that is imported when somebody asks for it."""

    name: str

    def load(self) -> Any:
        """Import the class."""
        return getattr(importlib.import_module("hf_qrnn.model.modeling_qrnn"), self.name)


class _Entries(MutableMapping[Any, Any]):
    """The models that others registered with an Auto class, ours imported when looked up."""

    def __init__(self, entries: Mapping[Any, Any]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, config: Any) -> Any:
        found = self._entries[config]
        if isinstance(found, _Later):
            found = self._entries[config] = found.load()
        return found

    def __setitem__(self, config: Any, model: Any) -> None:
        self._entries[config] = model

    def __delitem__(self, config: Any) -> None:
        del self._entries[config]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, config: object) -> bool:  # by the key alone: nothing is imported
        return config in self._entries


# ------------------------------------------------------------------ imports


def watch() -> None:
    """Make all entries now whose modules are imported, and each other when its module is."""
    # First, so that what another thread imports meanwhile is seen here or there.
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for name, enter in _ENTRIES.items():
        if sys.modules.get(name) is not None:
            # Waits where another thread is in the middle of it.
            enter(importlib.import_module(name))


def _is_being_imported(name: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))


class _Finder:
    """Lets the finders behind it find the modules of `_ENTRIES`, and wraps their loaders.

    It stays: a module that is loaded anew has new tables.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module that has an entry; leave all others to the other finders."""
        if name not in _ENTRIES:
            return None
        # Only those behind: one in front may ask all, this one too.
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :] if self in sys.meta_path else []
        for finder in behind:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    wrapped: Any = _Loader(spec.loader, _ENTRIES[name])
                    spec.loader = wrapped
                return spec
        return None


class _Loader:
    """A loader that makes an entry when its module is loaded; else it is the loader it wraps."""

    def __init__(self, loader: Any, enter: Callable[[ModuleType], None]) -> None:
        self._loader, self._enter = loader, enter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Make the module, as the other loader does."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Load the module, then make the entry."""
        # Whoever asks the module finds the loader it would have without us.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        try:
            self._enter(module)
        except Exception as error:
            # The import was asked for by somebody who may not need us: it must not fail.
            import logging

            logger = logging.getLogger("hf_qrnn")
            logger.warning("hf_qrnn makes no entry in %s: %s", module.__name__, error)
