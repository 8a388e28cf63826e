"""A translator without torch: a saved model and its tokenizer behind one `translate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from hf_qrnn.data.translations import Hypothesis, Translation

from .decoder import NumpyDecoder
from .generation import read_generation
from .native import HAVE_AVX512, NativeDecoder, NativeNetwork, instruction_sets
from .network import Network, read_network
from .ranking import RANKINGS, PaperRanking, Ranking
from .search import Decoder, search
from .settings import read_settings, require
from .tokens import Tokens
from .weights import Weights


class Translator:
    """A translation model of a folder, computed without torch.

    Args:
        path: A folder as `save_pretrained` writes it, with its tokenizer.
        backend: "native" (C++), "numpy", or "auto", the first that is there.

    Attributes:
        backend: The one in use, "native" or "numpy".
        reason: Why "auto" is not "native", or None.

    Raises:
        ValueError: If the folder is no such model, is damaged, or the engine cannot do what a field
            of its config says; or if "native" is asked for and not there.
    """

    def __init__(self, path: str | Path, *, backend: str = "auto") -> None:
        choices = ("auto", "native", "numpy")
        rule = f"one of {', '.join(map(repr, choices))}"
        require("backend", rule, backend, backend in choices)
        folder = Path(path)
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"`path` must be a folder with a saved translation model, but is {str(path)!r}."
            )
        settings, config = read_settings(folder)
        self.generation = read_generation(folder, config, settings.vocab_size)
        self.tokens = Tokens(folder, settings.vocab_size)
        weights = Weights(folder)
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
        texts: Sequence[str],
        *,
        language: str | Sequence[str] | None = None,
        num_beams: int = 1,
        num_return_sequences: int = 1,
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        on_batch: Callable[[int], None] | None = None,
        ranking: str = "length_penalty",
        alpha: float = 0.6,
    ) -> list[list[Translation]]:
        """Translate texts; a result does not depend on the batch it was computed in.

        Args:
            texts: Sentences. One without anything but white space gives empty translations.
            language: The language of all texts, or of each, for a model that has `languages`.
            num_beams: Beams; 1 is greedy search.
            num_return_sequences: Translations a text, best first; at most `num_beams`.
            max_new_tokens: The most tokens of a translation, its end token included; None = what
                the model's generation config says.
            batch_size: Texts a batch.
            on_batch: Called with a number of texts whenever they are done.
            ranking: Of the hypotheses of beam search: "length_penalty", the generation config's, or
                "paper", Eq. 9 of arXiv 1611.01576.
            alpha: Of "paper", at least 0: 0 is the plain sum, more favours longer targets.

        Returns:
            For every text its `num_return_sequences` translations.

        Raises:
            TypeError: If `texts` is one string.
            ValueError: If a number is out of range, a text is not valid Unicode, or a language is
                missing, unknown or too much.
        """
        rows = self.tokens.encode(texts, language)
        # A model makes up a sentence for an empty source.
        filled = [index for index, text in enumerate(texts) if text.strip()]
        results = [[Translation("", 0.0)] * num_return_sequences for _ in texts]
        if on_batch is not None and len(filled) < len(texts):
            on_batch(len(texts) - len(filled))
        hypotheses = self.generate(
            [rows[index] for index in filled],
            num_beams=num_beams,
            num_return_sequences=num_return_sequences,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            on_batch=on_batch,
            ranking=ranking,
            alpha=alpha,
        )
        for index, found in zip(filled, hypotheses, strict=True):
            results[index] = self._translations(found)
        return results

    def generate(
        self,
        sources: Sequence[Sequence[int]],
        *,
        num_beams: int = 1,
        num_return_sequences: int = 1,
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        on_batch: Callable[[int], None] | None = None,
        ranking: str = "length_penalty",
        alpha: float = 0.6,
    ) -> list[list[Hypothesis]]:
        """Generate the best targets of many sources, in the order given, as `translate` does.

        Args:
            sources: Source ids, each with its end token.
            num_beams, num_return_sequences, max_new_tokens, batch_size, on_batch, ranking, alpha:
                See `translate`.

        Raises:
            ValueError: If a number is out of range, or a source is empty or has no such ids.
        """
        given = {"num_beams": num_beams, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
        for name, value in given.items():
            require(name, "at least 1", value, value is None or value >= 1)
        require("ranking", f"one of {', '.join(map(repr, RANKINGS))}", ranking, ranking in RANKINGS)
        rule = f"in [1, `num_beams`] = [1, {num_beams}]"
        fits = 1 <= num_return_sequences <= num_beams
        require("num_return_sequences", rule, num_return_sequences, fits)
        vocab = self._network.settings.vocab_size
        rule = f"lists of at least one id in [0, {vocab})"
        for source in sources:
            fits = len(source) > 0 and 0 <= min(source) <= max(source) < vocab
            require("sources", rule, list(source), fits)
        # Neighbours in length share a batch: the fewest pads, and rows that end at about one time.
        order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
        results: list[list[Hypothesis]] = [[] for _ in sources]
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            rows = [list(sources[index]) for index in indices]
            limits = [max_new_tokens or self.generation.limit(len(row)) for row in rows]
            # Numbers that are too large end as NaN, of which the search speaks.
            with np.errstate(over="ignore", invalid="ignore"):
                decoder = self._decoder(rows, num_beams)
                by_paper: Ranking | None = None
                if ranking == "paper":
                    by_paper = PaperRanking(alpha, [len(row) - 1 for row in rows], limits)
                found = search(
                    decoder, self.generation, limits, num_beams, num_return_sequences, by_paper
                )
            for index, hypotheses in zip(indices, found, strict=True):
                results[index] = hypotheses
            if on_batch is not None:
                on_batch(len(indices))
        return results

    def _translations(self, found: Sequence[Hypothesis]) -> list[Translation]:
        texts = self.tokens.decode(one.ids for one in found)
        unknown = self.tokens.unk
        return [
            Translation(text, one.score, one.is_cut, one.log_probability, unknown in one.ids)
            for text, one in zip(texts, found, strict=True)
        ]

    def _decoder(self, rows: list[list[int]], num_beams: int) -> Decoder:
        if isinstance(self._network, NativeNetwork):
            return NativeDecoder(self._network, rows, num_beams)
        return NumpyDecoder(self._network, rows, num_beams)
