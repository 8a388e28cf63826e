"""A translator without torch: a saved model and its tokenizer behind one `translate`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from hf_qrnn.data.box import locate
from hf_qrnn.data.same_tokenizers import check_same
from hf_qrnn.data.texts import check_texts, list_of_texts
from hf_qrnn.data.translations import Hypothesis, Translation

from .attention import AttentionMap, attend
from .decoder import NumpyDecoder
from .encoder import encode
from .ensemble import EnsembleDecoder, common_generation
from .generation import MOST_TOKENS, read_generation
from .native import HAVE_AVX512, NativeDecoder, NativeNetwork, instruction_sets
from .network import Network, read_network
from .options import Options
from .ranking import PaperRanking, Ranking
from .sampling import Sampling, sample
from .search import Decoder, follow, search
from .settings import check_count, read_settings, require
from .streaming import PieceDecoder, TextStream
from .threads import Stop, num_cores, run_all
from .tokens import Tokens
from .weights import Array, Weights

# Tokens of the sources of a batch: what is done for one in one piece takes a moment, and Ctrl-C is
# heard behind it.
_BATCH_TOKENS = 16_384
_LONG = 4096  # tokens of a source


class Translator:
    """A translation model of a folder, or several as an ensemble, computed without torch.

    Args:
        path: A folder as `save_pretrained` writes it, with its tokenizer, or the name of a model in
            the box, as "de-en".
        others: More of them, whose log-probabilities are averaged at every step (`ensemble.py`);
            all must have the same tokenizer.
        backend: "native" (C++), "numpy", or "auto", the first that is there.

    Attributes:
        backend: The one in use, "native" or "numpy".
        reason: Why "auto" is not "native", or None.

    Raises:
        ValueError: If the folder is no such model, is damaged, or the engine cannot do what a field
            of its config says; if "native" is asked for and not there; or if tokenizers differ.
    """

    def __init__(self, path: str | Path, *others: str | Path, backend: str = "auto") -> None:
        choices = ("auto", "native", "numpy")
        rule = f"one of {', '.join(map(repr, choices))}"
        require("backend", rule, backend, backend in choices)
        folder = _folder(path)
        settings, config = read_settings(folder)
        self.generation = read_generation(folder, config, settings.vocab_size)
        self.tokens = Tokens(folder, settings.vocab_size)
        self._made_of: tuple[Any, ...] = (path, *others, backend)
        # Of what is read again later: a process may change its working directory.
        self._folder, weights = folder.resolve(), Weights(folder)
        self._version = _version(weights.files)
        network = read_network(settings, weights)
        self.backend = "numpy"
        self.reason: str | None = None
        self._network: Network | NativeNetwork = network
        if backend != "numpy":
            try:
                # With narrower vectors it takes longer to widen numbers than to read wide ones.
                halves = weights.are_halves and instruction_sets()[-1] in HAVE_AVX512
                self._network = NativeNetwork(network, halves=halves, taken=weights.release)
                self.backend = "native"
            except OSError as error:
                if backend == "native":
                    raise ValueError(
                        f"`backend` must be one that is there, but is 'native': {error}."
                    ) from error
                self.reason = str(error)
        if self.backend == "numpy":
            # A file that is written over while it is mapped changes weights, or ends the process.
            self._network = read_network(settings, weights.copied())
        self._starts, self._vocab_size = [self.generation.start], settings.vocab_size
        self._others = [Translator(other, backend=backend) for other in others]
        if others:
            self._join([str(path), *map(str, others)])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy it as its folders, which are loaded again: C++'s memory stays here."""
        *paths, backend = self._made_of
        folders = tuple(map(os.path.abspath, paths))
        return partial(type(self), backend=backend), folders, {"generation": self.generation}

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages whose tags the model knows; none where it needs no language."""
        return self.tokens.languages

    def check_language(self, language: str | None) -> None:
        """Find out whether `translate` would take a language, before anything is written.

        Raises:
            ValueError: If it is missing, unknown or too much.
        """
        self.tokens.encode([""], language)

    def translate(
        self,
        texts: Iterable[str],
        *,
        language: str | Sequence[str] | None = None,
        num_beams: int = 1,
        num_return_sequences: int = 1,
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        on_batch: Callable[[int], None] | None = None,
        ranking: str = "length_penalty",
        alpha: float = 0.6,
        num_threads: int | None = None,
        sampling: Sampling | None = None,
    ) -> list[list[Translation]]:
        """Translate texts; a result does not depend on the batch it was computed in.

        Args:
            texts: Sentences. One without anything but white space gives empty translations.
            language: The language of all texts, or of each, for a model that has `languages`.
            num_beams: Beams; 1 is greedy search.
            num_return_sequences: Translations a text, best first; at most `num_beams`. With
                `sampling` as many as are drawn, in their order.
            max_new_tokens: The most tokens of a translation, its end token included; None = what
                the model's generation config says.
            batch_size: Texts a batch.
            on_batch: Called with a number of texts whenever they are done, in the caller's thread.
            ranking: Of the hypotheses of beam search: "length_penalty", the generation config's, or
                "paper", Eq. 9 of arXiv 1611.01576.
            alpha: Of "paper", at least 0: 0 is the plain sum, more favours longer targets.
            num_threads: The most threads, each of which takes a batch; None = the cores that the
                process may use. Results do not depend on it.
            sampling: Draw translations instead of searching for the best; `num_beams` is 1 then.

        Returns:
            For every text its `num_return_sequences` translations.

        Raises:
            TypeError: If `texts` is one string, or gives something else than strings.
            ValueError: If a number is out of range, a text is not valid Unicode, or a language is
                missing, unknown or too much.
        """
        counts = (num_beams, num_return_sequences, max_new_tokens, batch_size)
        options = Options(*counts, on_batch, ranking, alpha, num_threads, sampling)
        texts = list_of_texts(texts)
        rows = self.tokens.encode(texts, language)
        # A model makes up a sentence for an empty source.
        filled = [index for index, text in enumerate(texts) if text.strip()]
        results = [[Translation("", 0.0)] * num_return_sequences for _ in texts]
        if on_batch is not None and len(filled) < len(texts):
            on_batch(len(texts) - len(filled))
        for index, found in self._run(rows, filled, options).items():
            results[index] = self._translations(found)
        return results

    def generate(
        self,
        sources: Iterable[Sequence[int]],
        *,
        num_beams: int = 1,
        num_return_sequences: int = 1,
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        on_batch: Callable[[int], None] | None = None,
        ranking: str = "length_penalty",
        alpha: float = 0.6,
        num_threads: int | None = None,
        sampling: Sampling | None = None,
    ) -> list[list[Hypothesis]]:
        """Generate the best targets of many sources, in the order given, as `translate` does.

        Args:
            sources: Source ids, each with its end token.
            num_beams, num_return_sequences, max_new_tokens, batch_size, on_batch, ranking, alpha,
                num_threads, sampling: See `translate`; sources count from 0.

        Raises:
            ValueError: If a number is out of range, or a source is empty or has no such ids.
        """
        counts = (num_beams, num_return_sequences, max_new_tokens, batch_size)
        options = Options(*counts, on_batch, ranking, alpha, num_threads, sampling)
        rows = self._checked_sources(sources)
        results = self._run(rows, range(len(rows)), options)
        return [results[index] for index in range(len(rows))]

    def stream(
        self, text: str, *, language: str | None = None, max_new_tokens: int | None = None
    ) -> TextStream:
        """Translate a text greedily, and give what is written as it comes.

        Args:
            text: A sentence.
            language: Its language, for a model that has `languages`.
            max_new_tokens: See `translate`.

        Returns:
            An iterator of pieces, which compute as they are asked for; joined they are the text
            that `translate` gives, which `TextStream.translation` has in the end.

        Raises:
            ValueError: As `translate`.
        """
        (source,) = self.tokens.encode([text], language)
        check_count("max_new_tokens", max_new_tokens, or_none=True)
        return TextStream(self._pieces(source if text.strip() else [], max_new_tokens))

    def attention(
        self, source: str, *, language: str | None = None, num_beams: int = 1
    ) -> AttentionMap:
        """Translate `source` and read the attention (Eq. 8 of 1611.01576) along the translation.

        The model is run a second time over its own translation, by NumPy.

        Raises:
            ValueError: If `source` has no text, `num_beams` is below 1, or the language is missing,
                unknown or too much.
        """
        ids = self._encode_one(source, language)
        best = self.generate([ids], num_beams=num_beams)[0][0]
        # A translation that was cut has no end token, so none is looked at.
        targets = best.ids if best.is_cut else [*best.ids, self.tokens.eos]
        networks = [member._numpy_network() for member in (self, *self._others)]
        found = attend(networks, self._starts, ids, targets, self._vocab_size)
        return AttentionMap(self.tokens.pieces(ids), self.tokens.pieces(targets), *found)

    def hidden_states_map(
        self, text: str, *, language: str | None = None
    ) -> tuple[list[str], Array]:
        """Return the states of the encoder's last layer over `text`, by NumPy: Fig. 3 of the paper.

        Returns:
            S tokens as in `AttentionMap`, and states (S, H), float32.

        Raises:
            ValueError: If `text` has no text, the language is missing, unknown or too much, or the
                model is an ensemble.
        """
        if self._others:
            raise ValueError(
                "`model` must be one model to show its states, but is an ensemble of "
                f"{1 + len(self._others)}."
            )
        ids = self._encode_one(text, language)
        return self.tokens.pieces(ids), encode(self._numpy_network(), [ids]).states[0]

    def _run(
        self, sources: Sequence[Sequence[int]], numbers: Iterable[int], options: Options
    ) -> dict[int, list[Hypothesis]]:
        """Search for targets of the sources `numbers`, and return them by these."""

        def compute(indices: list[int], stop: Stop) -> list[list[Hypothesis]]:
            rows = [list(sources[index]) for index in indices]
            return self._compute(rows, indices, options, stop)

        # Neighbours in length share a batch: the fewest pads, and rows that end at about one time.
        order = sorted(numbers, key=lambda index: len(sources[index]))
        # Whatever the threads, the batches are the same, and with them every bit of the results.
        batches = _batches(order, [len(source) for source in sources], options.batch_size)
        results: dict[int, list[Hypothesis]] = {}
        is_long = any(len(sources[index]) > _LONG for index in order[-1:])
        num_threads = options.num_threads or num_cores()
        for place, found in run_all(compute, batches, num_threads, is_long=is_long):
            results.update(zip(batches[place], found, strict=True))
            if options.on_batch is not None:
                options.on_batch(len(batches[place]))
        return results

    def _compute(
        self, rows: list[list[int]], numbers: Sequence[int], options: Options, stop: Stop
    ) -> list[list[Hypothesis]]:
        """Search for the targets of one batch, in any thread."""
        settings, num_return = self.generation, options.num_return_sequences
        wanted = [options.max_new_tokens or settings.limit(len(row)) for row in rows]
        limits = [min(limit, MOST_TOKENS) for limit in wanted]
        # Numbers that are too large end as NaN, of which the search speaks.
        with np.errstate(over="ignore", invalid="ignore"):
            decoder = self._decoder(rows, options.rows_each, stop)
            if options.sampling is not None:
                return sample(decoder, settings, limits, num_return, options.sampling, numbers)
            by_paper: Ranking | None = None
            if options.ranking == "paper":
                lengths = [len(row) - 1 for row in rows]
                by_paper = PaperRanking(options.alpha, lengths, limits)
            return search(decoder, settings, limits, options.num_beams, num_return, by_paper)

    def _pieces(self, source: list[int], max_new_tokens: int | None) -> Iterator[str | Translation]:
        """Yield the pieces of a translation, then itself; that of an empty source is empty."""
        if not source:
            yield Translation("", 0.0)
            return
        limit = max_new_tokens or self.generation.limit(len(source))
        pieces, found, total = PieceDecoder(self._decode_one), [], 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            decoder = self._decoder([source], 1)
        for token, log_probability in follow(decoder, self.generation, limit):
            total += log_probability
            if token in self.generation.ends:
                break
            found.append(token)
            if piece := pieces.add(token):
                yield piece
        if piece := pieces.rest():
            yield piece
        (whole,) = self._translations([Hypothesis(found, total, len(found) >= limit, total)])
        yield whole

    def _decode_one(self, ids: Sequence[int]) -> str:
        return self.tokens.decode([ids])[0]

    def _encode_one(self, text: str, language: str | None) -> list[int]:
        check_texts([text])
        if not text.strip():
            raise ValueError(f"The sentence must have text, but is {text!r}.")
        return self.tokens.encode([text], language)[0]

    def _numpy_network(self) -> Network:
        """Return the network in NumPy, which the one in C++ does not keep: read it again."""
        if isinstance(self._network, Network):
            return self._network
        settings, weights = read_settings(self._folder)[0], Weights(self._folder)
        if self._version != _version(weights.files):
            raise ValueError(
                f"The model in '{self._folder}' must be the one that was loaded, but its files "
                "have changed: load it again."
            )
        return read_network(settings, weights)

    def _join(self, names: Sequence[str]) -> None:
        """Make one of the members."""
        members = [self, *self._others]
        check_same([member.tokens.parts() for member in members], names)
        self._starts = [member.generation.start for member in members]
        self._vocab_size = min(member._vocab_size for member in members)
        self.generation = common_generation([member.generation for member in members])
        reasons = [member.reason for member in members if member.reason is not None]
        if reasons:
            self.backend, self.reason = "numpy", reasons[0]

    def _checked_sources(self, sources: Iterable[Sequence[int]]) -> list[list[int]]:
        rule = f"lists of at least one id in [0, {self._vocab_size})"
        require("sources", rule, sources, isinstance(sources, Iterable))
        rows = []
        for source in sources:
            ids = list(source) if isinstance(source, Iterable) else []
            fits = all(isinstance(x, Integral) and 0 <= x < self._vocab_size for x in ids)
            require("sources", rule, ids or source, fits and len(ids) > 0)
            rows.append(list(map(int, ids)))
        return rows

    def _translations(self, found: Sequence[Hypothesis]) -> list[Translation]:
        texts = self.tokens.decode(one.ids for one in found)
        unknown = self.tokens.unk
        return [
            Translation(text, one.score, one.is_cut, one.log_probability, unknown in one.ids)
            for text, one in zip(texts, found, strict=True)
        ]

    def _decoder(self, rows: list[list[int]], rows_each: int, stop: Stop | None = None) -> Decoder:
        """Make the decoder of all members over sources, with `rows_each` rows of each."""
        if not self._others:
            return self._own_decoder(rows, rows_each, stop)
        members = (self, *self._others)
        decoders = [member._own_decoder(rows, rows_each, stop) for member in members]
        return EnsembleDecoder(decoders, self._starts, self._vocab_size)

    def _own_decoder(self, rows: list[list[int]], rows_each: int, stop: Stop | None) -> Decoder:
        if isinstance(self._network, NativeNetwork):
            return NativeDecoder(self._network, rows, rows_each, stop)
        return NumpyDecoder(self._network, rows, rows_each, stop)


def _folder(path: str | Path) -> Path:
    """Return the folder of a model, by its place or by its name in the box."""
    rule = "a folder with a saved translation model"
    is_path = isinstance(path, (str, os.PathLike))
    shown = str(path) if is_path else path
    found = Path(locate(path) if isinstance(path, str) else path) if is_path else Path()
    require("path", rule, shown, is_path and (found / "config.json").is_file())
    return found


def _version(files: Sequence[Path]) -> list[tuple[int, ...]]:
    """Return what tells files from those that are written in their places."""
    found = [file.stat() for file in files]
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]


def _batches(order: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Cut `order` into batches of `size` sources at most, and fewer where they are long."""
    batches: list[list[int]] = []
    num_tokens = 0
    for index in order:
        num_tokens += lengths[index]
        if not batches or len(batches[-1]) == size or num_tokens > _BATCH_TOKENS:
            batches.append([])
            num_tokens = lengths[index]
        batches[-1].append(index)
    return batches
