"""Words in, phones out: a lexicon first, a translation model for the rest."""

from .pronouncer import Pronouncer, Pronunciation

__all__ = ["Pronouncer", "Pronunciation"]
