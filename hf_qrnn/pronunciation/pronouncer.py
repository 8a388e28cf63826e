"""A pronouncer of words: a lexicon first, a model for the rest, a refusal where neither knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from hf_qrnn import engine as engines
from hf_qrnn.data.box import locate
from hf_qrnn.data.flags import typed
from hf_qrnn.data.texts import split_symbols
from hf_qrnn.data.translations import Hypothesis
from hf_qrnn.engine.choice import choose_engine

from .languages import find_language
from .letters import EngineLetters, Letters, TokenizerLetters
from .lexicon import Lexicon, read_lexicon
from .spelling import Spelling, seen, straight, trimmed

if TYPE_CHECKING:
    import torch

    from hf_qrnn.translation.translator import Translator

_Generate = Callable[..., list[list[Hypothesis]]]
_LONGEST_NORMALIZED = 1000  # characters; those of many marks take quadratic time

DEFAULT_THRESHOLD = 0.3
"""The confidence below which a model's answer is refused where nothing else is said."""
DTYPE = "float32"
"""What models compute in, whatever they were saved in: small models in bfloat16 files, whose
answers then differ between machines by no more than the sums of float32 do."""


@dataclass(frozen=True)
class Pronunciation:
    """One pronunciation of a word, or the refusal of one.

    Attributes:
        word: The word as it was given.
        symbols: Its phones; none if it is refused.
        confidence: For a model's answer its probability among the answers the search found (see
            `Pronouncer`); 1 for a lexicon's; 0 for a word that the model was not asked.
        origin: "lexicon" or "model".
        reason: Says why it is refused, as "has digits"; "" if it is not.
    """

    word: str
    symbols: tuple[str, ...]
    confidence: float
    origin: str
    reason: str = ""

    @property
    def text(self) -> str:
        """The symbols with blanks between them."""
        return " ".join(self.symbols)

    @property
    def is_refused(self) -> bool:
        """True if there is no pronunciation; `reason` says why."""
        return bool(self.reason)


@dataclass(frozen=True)
class _Answer:
    """One answer of the model to a word."""

    symbols: tuple[str, ...]
    confidence: float
    is_cut: bool


class Pronouncer:
    """Pronounces words by a lexicon, and those it does not have by a model.

    `pronouncer("hello").text` is "HH AH0 L OW1"; `pronounce` takes many words. A word is looked up
    in the lexicon as it is written, then in lower case, then in upper case. `spelling.py` says how
    the model gets it, and what is refused without asking the model.

    The confidence of an answer is its probability divided by that of all answers that the beam
    search found, itself included: the best against the rest. (With one beam there is no rest: it is
    the answer's own probability.) Refused are answers whose confidence is below the threshold,
    empty answers and answers that reached the length limit of the model's generation config
    (`limits_qrnn.py`: `target_limits`), so that none is longer. Words that are spelled like none of
    the training are refused without asking (`spelling.py`).

    Args:
        model: A folder with a saved model, its name in the box or on the Hub, or a translator, also
            the engine's.
        lexicon: A file (`lexicon.py`: `read_lexicon`), or for each word its pronunciations.
        language: The language of the words, for a model that was trained with language tags: the
            tag, or another code or the English name of its language (`languages.py`).
        threshold: The least confidence that is not refused, in [0, 1]; 0 refuses none, nor a word
            for being spelled like none of the training.
        num_beams: Beams of the search, and so the most pronunciations of a word.
        batch_size: Words that the model gets at once.
        device: Where to compute; None is the GPU if there is one, else the CPU.
        engine: What computes a model that is loaded here: "native", the engine, which needs no
            torch; "torch"; or "auto", the engine where it can do what is asked and there is no GPU.
        num_threads: The most threads of the engine; None = the cores that the process may use.
            Torch has a number of its own.

    Raises:
        FileNotFoundError: If there is no such lexicon.
        TypeError: If a number, the lexicon or the model is of another kind.
        ValueError: If a number is out of range, there is no such model, `language` is missing,
            unknown or too much, or the lexicon is none.
    """

    def __init__(
        self,
        model: str | Path | Translator | engines.Translator,
        *,
        lexicon: str | Path | Mapping[str, Sequence[Sequence[str]]] | None = None,
        language: str | None = None,
        threshold: float = DEFAULT_THRESHOLD,
        num_beams: int = 5,
        batch_size: int = 64,
        device: str | torch.device | None = None,
        engine: str = "auto",
        num_threads: int | None = None,
    ) -> None:
        if not _is_a(Real, threshold) or not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must be in [0, 1], but is {threshold!r}.")
        _check_count("num_beams", num_beams)
        _check_count("batch_size", batch_size)
        if num_threads is not None:
            _check_count("num_threads", num_threads)
        # Before the model, which takes longer to load.
        self._lexicon = _open_lexicon(lexicon)
        if isinstance(model, (str, Path)):
            model = _load(str(model), None if device is None else str(device), engine)
        language = find_language(language, _languages(model))
        self._generate, self._letters = _parts(model, language, num_threads)
        self._spelling = Spelling(self._letters, is_strict=threshold > 0)
        self._threshold, self._num_beams, self._batch_size = threshold, num_beams, batch_size

    @property
    def language(self) -> str | None:
        """The tag of the language that the words are of; None where the model has no tags."""
        return self._letters.language

    def __call__(self, word: str) -> Pronunciation:
        """Pronounce one word."""
        return self.pronounce([word])[0][0]

    def pronounce(
        self,
        words: Sequence[str],
        *,
        n_best: int = 1,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[list[Pronunciation]]:
        """Pronounce many words; the result of one does not depend on the others.

        Args:
            words: The words; one that occurs several times is computed once.
            n_best: The most pronunciations of a word, best first; at most `num_beams`.
            on_batch: Called with a number of words whenever they are done.

        Returns:
            For every word its pronunciations: at least one, which may be a refusal. What is less
            likely than the first is never refused, and left out if it reached the limit.

        Raises:
            TypeError: If `words` is one string, or holds something else than strings.
            ValueError: If `n_best` is out of range.
        """
        if isinstance(words, str):
            raise TypeError("`words` must be a list of words, but is one string.")
        for word in words:
            if not isinstance(word, str):
                raise TypeError(f"`words` must hold strings, but holds {word!r}.")
        if not _is_a(Integral, n_best) or not 1 <= n_best <= self._num_beams:
            raise ValueError(
                f"`n_best` must be in [1, `num_beams`] = [1, {self._num_beams}], but is {n_best}."
            )
        results = {word: self._look_up(word)[:n_best] for word in words}
        rest = [word for word, found in results.items() if not found]
        spelled = dict(zip(rest, self._spelling.spell(rest), strict=True))
        forms = list(dict.fromkeys(form for form, reason in spelled.values() if not reason))
        if on_batch is not None and len(forms) < len(words):
            on_batch(len(words) - len(forms))
        answers = dict(zip(forms, self._ask(forms, on_batch), strict=True))
        for word, (form, reason) in spelled.items():
            if reason:
                results[word] = [Pronunciation(word, (), 0.0, "model", reason)]
            else:
                results[word] = self._judge(word, answers[form])[:n_best]
        return [list(results[word]) for word in words]

    def _look_up(self, word: str) -> list[Pronunciation]:
        """Find a word in the lexicon, as it is or in another case."""
        plain = straight(trimmed(word))
        spellings = (trimmed(word), plain, plain.lower(), plain.upper())
        forms = [*spellings, *map(seen, spellings)]
        if len(word) <= _LONGEST_NORMALIZED:
            forms += [normalize(form, x) for form in ("NFC", "NFD") for x in forms]
        found = next((self._lexicon[x] for x in forms if x in self._lexicon), [])
        return [Pronunciation(word, symbols, 1.0, "lexicon") for symbols in found]

    def _ask(
        self, forms: Sequence[str], on_batch: Callable[[int], None] | None
    ) -> list[list[_Answer]]:
        """Let the model answer: for every form what the search found, best first."""
        found = self._generate(
            self._letters.encode(forms),
            num_beams=self._num_beams,
            num_return_sequences=self._num_beams,
            batch_size=self._batch_size,
            on_batch=on_batch,
        )
        return [
            _weigh(self._letters.decode([hypothesis.ids for hypothesis in row]), row)
            for row in found
        ]

    def _judge(self, word: str, answers: Sequence[_Answer]) -> list[Pronunciation]:
        """Turn answers into pronunciations, or into one refusal."""
        best, *others = answers
        reason = ""
        if best.is_cut:
            reason = "has no pronunciation that ends within the model's limit of length"
        elif not best.symbols:
            reason = "has no pronunciation: the model gives no symbol"
        elif best.confidence < self._threshold:
            reason = (
                f"has no sure pronunciation: the confidence {best.confidence:.2f} is below the "
                f"threshold {self._threshold:g}"
            )
        if reason:
            return [Pronunciation(word, (), best.confidence, "model", reason)]
        # Where the search found less than it was asked for, there are rows of no probability.
        good = [best, *(x for x in others if x.symbols and x.confidence > 0 and not x.is_cut)]
        return [Pronunciation(word, x.symbols, x.confidence, "model") for x in good]


def _is_a(kind: type, value: Any) -> bool:
    # NumPy's numbers too, which mypy does not take for numbers.
    return isinstance(value, kind)


def _check_count(name: str, value: Any) -> None:
    if not _is_a(Integral, value):
        raise TypeError(f"`{name}` must be an integer, but is {value!r}.")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, but is {value}.")


def _open_lexicon(given: str | Path | Mapping[str, Any] | None) -> Lexicon:
    """Read a lexicon from a file, or look at one that is given."""
    if isinstance(given, (str, Path)):
        with typed(path="lexicon"):
            return read_lexicon(given)
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"`lexicon` must be a file or a mapping, but is {type(given).__name__}.")
    found: Lexicon = {}
    for word, rows in (given or {}).items():
        # A string is a sequence too, of characters instead of symbols.
        if isinstance(rows, str) or any(isinstance(row, str) for row in rows):
            raise TypeError(
                f"`lexicon` must have for every word a list of pronunciations, each a list of "
                f"symbols, but has {rows!r} for {word!r}."
            )
        found[word] = [tuple(symbols) for symbols in rows]
    return found


def _load(model: str, device: str | None, engine: str) -> Translator | engines.Translator:
    """Load a model by the engine or, where that is not wanted or cannot, by torch."""
    model = locate(model)
    found = choose_engine(engine, [model], device).engine
    if found is not None:
        return found
    import torch

    from hf_qrnn.translation.translator import load_translator

    with typed(name_or_path="model"):
        return load_translator(model, device=device, dtype=getattr(torch, DTYPE))


def _languages(model: Translator | engines.Translator) -> Sequence[str]:
    """Return the languages that a model has tags for."""
    if isinstance(model, engines.Translator):
        found: Sequence[str] = model.tokens.config.get("languages") or ()
        return found
    if not hasattr(model, "languages"):
        raise TypeError(
            f"`model` must be a folder, a name or a translator, but is {type(model).__name__}."
        )
    return model.languages


def _parts(
    model: Translator | engines.Translator, language: str | None, num_threads: int | None
) -> tuple[_Generate, Letters]:
    """Return the search and the letters of a model."""
    if isinstance(model, engines.Translator):
        generate = partial(model.generate, num_threads=num_threads)
        return generate, EngineLetters(model.tokens, language)
    from hf_qrnn.translation.search import generate_hypotheses

    letters = TokenizerLetters(model.tokenizer, language)
    return partial(generate_hypotheses, model.model), letters


def _weigh(texts: Sequence[str], hypotheses: Sequence[Hypothesis]) -> list[_Answer]:
    """Give the hypotheses of one word their share of the probability of all of them."""
    totals: dict[tuple[tuple[str, ...], bool], float] = {}
    for text, hypothesis in zip(texts, hypotheses, strict=True):
        # Equal symbols that were written otherwise (a blank more) are one answer.
        key = (tuple(split_symbols(text)), hypothesis.is_cut)
        probability = math.exp(min(0.0, hypothesis.log_probability))
        totals[key] = totals.get(key, 0.0) + probability
    rest = sum(totals.values()) if len(hypotheses) > 1 else 1.0
    return [
        _Answer(symbols, total / rest if rest else 0.0, is_cut)
        for (symbols, is_cut), total in totals.items()
    ]
