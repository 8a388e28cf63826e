"""Translation without torch and transformers: numpy, tokenizers and a saved folder are enough."""

from .attention import AttentionMap
from .sampling import Sampling
from .streaming import TextStream
from .translator import Translator

__all__ = ["AttentionMap", "Sampling", "TextStream", "Translator"]
