"""The models: every file that ends in `_qrnn.py` travels with a saved model."""

import importlib
from typing import TYPE_CHECKING

import torch  # noqa: F401  (before any module here: registration.py then imports some)

if not TYPE_CHECKING:  # a type checker would believe that any name is here

    def __getattr__(name: str) -> object:
        """Import a module of this folder when it is first asked for as an attribute."""
        try:
            return importlib.import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
