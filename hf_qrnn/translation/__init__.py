"""Sentences in, sentences out: search, translator, pictures."""

import importlib
from typing import TYPE_CHECKING

if not TYPE_CHECKING:  # a type checker would believe that any name is here

    def __getattr__(name: str) -> object:
        """Import a module of this folder when it is first asked for as an attribute."""
        try:
            return importlib.import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
