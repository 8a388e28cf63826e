"""A translation as it comes: every piece of text as soon as it cannot change any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hf_qrnn.data.translations import Translation


class TextStream:
    """The pieces of one translation, to be read once; joined, they are its text.

    Attributes:
        translation: The whole, once all pieces were read; None before.
    """

    def __init__(self, pieces: Iterator[str | Translation]) -> None:
        self.translation: Translation | None = None
        self._pieces = pieces

    def __iter__(self) -> TextStream:
        """Return itself: it is an iterator."""
        return self

    def __next__(self) -> str:
        """Compute until there is another piece."""
        found = next(self._pieces)
        if isinstance(found, Translation):
            self.translation = found
            raise StopIteration
        return found


class PieceDecoder:
    """Decodes ids as they come; a piece never ends inside a character.

    What a token adds to a text depends on those before it: a blank stands between two symbols, and
    a character may be made of several bytes. So a token is decoded behind the last piece, and what
    that piece is alone is cut off.

    Args:
        decode: Decodes ids, without special tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._last: list[int] = []  # the ids of the last piece
        self._new: list[int] = []

    def add(self, token: int) -> str:
        """Return what is new in the text: "" where nothing is, or a character is not complete."""
        self._new.append(token)
        piece = self._piece()
        # Bytes that are no character yet.
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._last, self._new = self._new, []
        return piece

    def rest(self) -> str:
        """Return what never became a character."""
        piece, self._new = self._piece(), []
        return piece

    def _piece(self) -> str:
        before = self._decode(self._last)
        return self._decode([*self._last, *self._new])[len(before) :]
