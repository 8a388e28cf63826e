"""Several models that are searched as one, as `hf_qrnn/translation/ensemble.py` has it.

At every step the members' log-probabilities are averaged and normalised again.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from hf_qrnn.data.same_tokenizers import DifferentTokenizersError

from .equations import log_softmax
from .generation import GenerationSettings
from .search import Decoder, Ids
from .weights import Array


class EnsembleDecoder:
    """The decoders of all members, which read the same tokens.

    Args:
        decoders: One a member, over the same sources.
        starts: The token before the first of each member; the search gives that of one of them.
        vocab_size: The smallest: rows behind it are of no token.
    """

    def __init__(self, decoders: Sequence[Decoder], starts: Sequence[int], vocab_size: int) -> None:
        self._members = list(zip(decoders, starts, strict=True))
        self._vocab_size, self._is_begin = vocab_size, True

    def step(self, tokens: Ids) -> Array:
        """Read a token of each row (R,) and return log-probabilities of the next (R, V)."""
        logs = []
        for decoder, start in self._members:
            own = np.full_like(tokens, start) if self._is_begin else tokens
            logs.append(log_softmax(decoder.step(own))[:, : self._vocab_size])
        self._is_begin = False
        return log_softmax(np.mean(logs, axis=0))

    def select(self, rows: Ids, sources: Ids | None = None) -> None:
        """Go on with `rows` of the state, and where given with `sources` of the memory only."""
        for decoder, _ in self._members:
            decoder.select(rows, sources)


def common_generation(members: Sequence[GenerationSettings]) -> GenerationSettings:
    """Make the settings of an ensemble: the first member's, with lengths that serve all.

    Raises:
        DifferentTokenizersError: If they end a target by different ids.
    """
    ends = [sorted(member.ends) for member in members]
    different = [own for own in ends if own != ends[0]]
    if different:
        raise DifferentTokenizersError(
            "`models` must end a target by the same ids (`eos_token_id`), but do so by "
            f"{ends[0]} and {different[0]}."
        )
    fixed = [one.max_new_tokens for one in members if one.max_new_tokens is not None]
    if len(fixed) == len(members):
        return dataclasses.replace(members[0], max_new_tokens=max(fixed))
    # The line over all lines; a fixed length is one too, that does not rise.
    others = [one for one in members if one.max_new_tokens is None]
    return dataclasses.replace(
        members[0],
        max_new_tokens=None,
        ratio=max(one.ratio for one in others),
        offset=max([*fixed, *(one.offset for one in others)]),
    )
