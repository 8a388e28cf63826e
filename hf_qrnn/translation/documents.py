"""Translates documents: their lines are split into sentences, and joined again as they were.

Blank lines, indentation, marks of lists, white space between sentences and the ends of lines stay.
Sentences longer than those a model has learnt from are split at their clauses, and so is what comes
out as a loop (`loops.py`) or reaches the limit of length. What cannot be helped is told, once a
sentence.

Both translators do: this one's and the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_qrnn.data.translations import Translation, one_line

from .loops import count_loops, cut_loops
from .sentences import Part, split_clauses, split_line, split_words

DEFAULT_LONGEST = 200
"""Characters of the longest sentence that is not split, of a model that does not say its own."""
_TRIES = 3  # an output that is wrong is made anew, of smaller parts, so often
_NAME = "usual_source_chars"

Translate = Callable[[list[str]], list[list[Translation]]]


def longest_of(translator: Any) -> int:
    """Return the characters of the longest source that is usual in a translator's training data.

    Training writes it into the generation config; `DEFAULT_LONGEST` where it is not there.
    """
    settings = getattr(translator, "generation", None)
    if settings is None:
        settings = translator.model.generation_config
    found = getattr(settings, _NAME, None)
    return found if type(found) is int and found > 0 else DEFAULT_LONGEST


def translate_document(
    translator: Any,
    text: str,
    *,
    longest: int | None = None,
    on_flag: Callable[[int, str], None] | None = None,
    **options: Any,
) -> str:
    r"""Translate a document of any length, by a translator of `hf_qrnn` or of its engine.

    Args:
        translator: A `Translator`.
        text: The document. A line is a paragraph: no sentence goes on in the next.
        longest: Characters of the longest sentence that is not split; None = `longest_of`.
        on_flag: Called with the number of a line and what is doubtful about a sentence of it.
        options: Those of `Translator.translate`, as `num_beams`.

    Returns:
        The document, with as many lines.

    Raises:
        TypeError: If `text` is no string.
        ValueError: If `longest` is below 1, or an option is wrong.
    """
    if not isinstance(text, str):
        raise TypeError(f"`text` must be one string, but is {type(text).__name__}.")
    bound = longest_of(translator) if longest is None else longest

    def translate(texts: list[str]) -> list[list[Translation]]:
        found: list[list[Translation]] = translator.translate(texts, **options)
        return found

    lines = text.split("\n")
    return "\n".join(translate_lines(translate, lines, longest=bound, on_flag=on_flag))


def translate_lines(
    translate: Translate,
    lines: Sequence[str],
    *,
    longest: int = DEFAULT_LONGEST,
    first: int = 1,
    on_flag: Callable[[int, str], None] | None = None,
) -> list[str]:
    """Translate lines of several sentences each, all sentences together.

    Args:
        translate: Gives the translations of sentences, best first.
        lines: The lines, with or without their ends.
        longest: Characters of the longest sentence that is not split.
        first: Number of the first line.
        on_flag: Called with the number of a line and what is doubtful about a sentence of it.
    """
    if longest < 1:
        raise ValueError(f"`longest` must be at least 1, but is {longest}.")
    rows = [[_Node(part) for part in split_line(line)] for line in lines]
    sentences = [node for row in rows for node in row if node.output is None]
    for node in sentences:
        _shorten(node, longest)
    leaves = [leaf for node in sentences for leaf in node.leaves()]
    for tries in range(_TRIES + 1):
        leaves = _translate(translate, leaves, may_split=tries < _TRIES)
    for node in sentences:
        node.finish()
    if on_flag is not None:
        for number, row in enumerate(rows, first):
            for node in row:
                if node.doubts:
                    on_flag(number, f"{_quoted(node.text)} {', and '.join(node.doubts)}")
    return ["".join(node.written for node in row) for row in rows]


@dataclass
class _Node:
    """A part of a line: kept as it is, translated whole, or by its parts.

    Attributes:
        part: The part.
        output: What is written for it; None = not yet.
        children: Its parts, where it is split.
        doubts: What must be told of it.
    """

    part: Part
    output: str | None = None
    children: list[_Node] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.part.is_sentence:
            self.output = self.part.text

    @property
    def text(self) -> str:
        """The characters of the source."""
        return self.part.text

    @property
    def written(self) -> str:
        """The translation, joined of those of its parts."""
        if self.output is not None:
            return self.output
        return "".join(
            _as_clause(child.text, child.written) if child.part.is_sentence else child.written
            for child in self.children
        )

    def leaves(self) -> list[_Node]:
        """List the parts that are to be translated."""
        if self.output is not None:
            return []
        if not self.children:
            return [self]
        return [leaf for child in self.children for leaf in child.leaves()]

    def split(self, parts: Sequence[Part]) -> None:
        """Let parts stand for the whole."""
        self.children = [_Node(part) for part in parts]

    def finish(self) -> None:
        """Gather the doubts of all parts, and cut what still repeats itself."""
        for child in self.children:
            child.finish()
            self.doubts += [doubt for doubt in child.doubts if doubt not in self.doubts]
        written = self.written
        if written == self.text:
            return
        if count_loops(written) > count_loops(self.text):
            self.output = cut_loops(written)
            self._doubt("repeats itself in translation: the repeats are left out")

    def _doubt(self, doubt: str) -> None:
        if doubt not in self.doubts:
            self.doubts.append(doubt)


def _shorten(node: _Node, longest: int) -> None:
    """Split a sentence that is longer than `longest`, and tell where that is impossible."""
    if len(node.text) <= longest:
        return
    told = f"has more than the {longest} characters that are usual in the model's training data"
    node.split(split_clauses(node.text, longest))
    for child in node.children:
        if not child.part.is_sentence or len(child.text) <= longest:
            continue
        node.doubts = [f"{told} and no clause to be split at"]
        # A little more is worth a try; much more ends in a loop.
        if len(child.text) > 2 * longest:
            child.split(split_words(child.text, longest))
            for word in child.children:
                # An address, or numbers in letters: nothing that a sentence is made of.
                if len(word.text) > 2 * longest:
                    word.output = word.text
                    node.doubts = [f"{told} and no blank in them: they are kept as they are"]


def _translate(translate: Translate, leaves: list[_Node], *, may_split: bool) -> list[_Node]:
    """Translate parts; return those into which the ones are split that went wrong."""
    texts = list(dict.fromkeys(leaf.text for leaf in leaves))
    found = dict(zip(texts, translate(texts), strict=True)) if texts else {}
    again = []
    for leaf in leaves:
        best = found[leaf.text][0]
        text = one_line(best.text)
        loops = count_loops(text) > count_loops(leaf.text)
        if not loops and not best.is_cut:
            leaf.output = text
            continue
        size = len(leaf.text)
        parts = split_clauses(leaf.text, max(1, size // 2))
        if len(parts) == 1:
            parts = split_words(leaf.text, size - 1)
        if may_split and len(parts) > 1:
            leaf.split(parts)
            again += leaf.leaves()
            continue
        leaf.output = cut_loops(text) if loops else text
        leaf.doubts = [
            "repeats itself in translation: the repeats are left out"
            if loops
            else "reached the length limit: its translation may be cut"
        ]
    return again


def _as_clause(source: str, output: str) -> str:
    """Let the translation of a part of a sentence end and begin as the part does."""
    end = source[-1]
    if end not in ".!?…" and output.endswith(".") and not output.endswith(".."):
        output = output[:-1] + (end if end in ",;:" else "")
    first = output.split(" ", 1)[0]
    # Written so wherever they stand.
    keeps = first in ("I", "I'm", "I'll", "I've", "I'd") or (len(first) > 1 and first.isupper())
    return output[:1].lower() + output[1:] if source[0].islower() and not keeps else output


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
