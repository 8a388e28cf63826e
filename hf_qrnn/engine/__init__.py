"""Translation without torch and transformers: numpy, tokenizers and a saved folder are enough."""

from .translator import Translator

__all__ = ["Translator"]
