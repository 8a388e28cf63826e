"""The options of a search, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .ranking import RANKINGS
from .sampling import Sampling
from .settings import check_count, require


@dataclass(frozen=True)
class Options:
    """The options of `Translator.translate`, which says what they are."""

    num_beams: int
    num_return_sequences: int
    max_new_tokens: int | None
    batch_size: int
    on_batch: Callable[[int], None] | None
    ranking: str
    alpha: float
    num_threads: int | None
    sampling: Sampling | None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: If a number is out of range.
        """
        for name in ("num_beams", "num_return_sequences", "batch_size"):
            check_count(name, getattr(self, name))
        for name in ("max_new_tokens", "num_threads"):
            check_count(name, getattr(self, name), or_none=True)
        rule = f"one of {', '.join(map(repr, RANKINGS))}"
        require("ranking", rule, self.ranking, self.ranking in RANKINGS)
        num, sampling = self.num_return_sequences, self.sampling
        fits = sampling is None or isinstance(sampling, Sampling)
        require("sampling", "a Sampling or None", sampling, fits)
        if sampling is not None:
            require("num_beams", "1 with `sampling`", self.num_beams, self.num_beams == 1)
            return
        rule = f"in [1, `num_beams`] = [1, {self.num_beams}]"
        require("num_return_sequences", rule, num, 1 <= num <= self.num_beams)

    @property
    def rows_each(self) -> int:
        """The rows of each source."""
        return self.num_beams if self.sampling is None else self.num_return_sequences
