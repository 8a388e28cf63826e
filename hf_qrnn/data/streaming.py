"""Batches data sets too large for memory: as they are read, or by ids that lie on the disk.

Nothing here is needed for plain files; `datasets` is imported only when asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, overload

from transformers import PreTrainedTokenizerBase

from .batching import Batch, BatchPlan, BucketBatchSampler, EncodedPair, encode_pairs, make_loader
from .reading import TextPair
from .rows import import_optional
from .symbols import languages, sides_of


class StreamBatches:
    """The batches of pairs that are read as they are needed, every process its share.

    The pairs are taken in pools, in the order they come; a pool is tokenized, shuffled, sorted and
    cut as `BucketBatchSampler` does. Every process reads the whole stream, so none has to speak to
    another, and every pair occurs exactly once an epoch outside fillers. A resumed run reads the
    part of the epoch again that it has already seen.

    Args:
        pairs: The pairs, to be iterated again for every epoch.
        tokenizer: The tokenizer of both sides.
        max_tokens: Most tokens of a batch on each side, padding included.
        seed: Seed of the order within a pool.
        pool_size: Pairs of a pool.
        world_size: Number of processes.
        rank: This process, from 0.
        pad_to_multiple_of: As in `BucketBatchSampler`.
    """

    def __init__(
        self,
        pairs: Iterable[TextPair],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int,
        seed: int = 0,
        pool_size: int = 8192,
        world_size: int = 1,
        rank: int = 0,
        pad_to_multiple_of: int = 1,
    ) -> None:
        self._pairs, self._tokenizer = pairs, tokenizer
        self._pool_size, self._seed = pool_size, seed
        self._max_tokens, self._world_size, self._rank = max_tokens, world_size, rank
        self._multiple = pad_to_multiple_of
        self._epoch = self._start = 0

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Choose the epoch of the next iteration, and the batches to leave out of it."""
        self._epoch, self._start = epoch, start

    def __len__(self) -> int:
        # Not a ValueError: `list` asks for a length, and takes this for "unknown".
        raise TypeError(
            "`max_steps` must be at least 1 with `streaming`, as the length of a stream is not "
            "known, but is 0."
        )

    def __iter__(self) -> Iterator[Batch]:
        left_out = self._start  # batches still to be left out
        pairs = iter(self._pairs)
        pad: Any = self._tokenizer.pad_token_id
        number = 0
        while pool := list(islice(pairs, self._pool_size)):
            encoded = encode_pairs(self._tokenizer, pool)
            # Pools must not share an order, nor runs of other seeds: each seed has 2**20 pools.
            seed = self._seed * 2**20 + number
            sampler = BucketBatchSampler(
                encoded,
                max_tokens=self._max_tokens,
                seed=seed,
                world_size=self._world_size,
                rank=self._rank,
                pad_to_multiple_of=self._multiple,
            )
            sampler.set_epoch(self._epoch)
            plans: list[BatchPlan] = list(sampler)
            # Batches that a resumed run has seen are planned, so as to be counted, but not made.
            yield from make_loader(
                encoded, plans[left_out:], pad_token_id=pad, pad_to_multiple_of=self._multiple
            )
            left_out = max(0, left_out - len(plans))
            number += 1


class StoredPairs(Sequence[EncodedPair]):
    """The pairs of ids in a `datasets.Dataset`, read from the disk when asked for."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    @overload
    def __getitem__(self, index: int) -> EncodedPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedPair]: ...
    def __getitem__(self, index: int | slice) -> EncodedPair | list[EncodedPair]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        row = self._dataset[index]
        return EncodedPair(row["source_ids"], row["target_ids"])

    def __iter__(self) -> Iterator[EncodedPair]:
        # A thousand rows at once: each access to the disk has a cost of its own.
        for rows in self._dataset.iter(batch_size=1000):
            yield from map(EncodedPair, rows["source_ids"], rows["target_ids"])


def encode_stored(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[TextPair],
    *,
    num_proc: int,
) -> StoredPairs:
    """Encode pairs in `num_proc` processes; the same texts and tokenizer are encoded once.

    The ids are kept with what `datasets` keeps.

    Args:
        tokenizer: The tokenizer of both sides; must have a backend of `tokenizers`.
        pairs: The pairs.
        num_proc: Number of processes, at least 1.

    Raises:
        ImportError: If `datasets` is not installed.
        ValueError: If `num_proc` is below 1.
    """
    if num_proc < 1:
        raise ValueError(f"`num_proc` must be at least 1, but is {num_proc}.")
    datasets = import_optional("datasets", "tokenize in several processes")
    # By what the ids depend on: `datasets` would hash the function and all that it holds.
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    tagged = bool(languages(tokenizer)) or any(pair.language for pair in pairs)
    if sides_of(tokenizer) is not None:  # which the backend does not say
        digest.update(repr(sides_of(tokenizer)).encode())
    for pair in pairs:
        for text in (pair.source, pair.target, *([pair.language] if tagged else [])):
            # With its length, so that no character can move from one text to the next unseen.
            digest.update(f"{len(text)} {text}".encode())
    folder = os.path.join(datasets.config.HF_DATASETS_CACHE, "hf_qrnn")
    os.makedirs(folder, exist_ok=True)
    texts = datasets.Dataset.from_dict(
        {
            "source": [pair.source for pair in pairs],
            "target": [pair.target for pair in pairs],
            "language": [pair.language for pair in pairs],
        }
    )

    with _single_threaded_tokenizers():
        stored = texts.map(
            _encoder(tokenizer),
            batched=True,
            num_proc=min(num_proc, len(pairs)),  # of more, `datasets` warns
            remove_columns=["source", "target", "language"],
            # By these two, ids that an earlier run has left are found and not made again.
            cache_file_name=os.path.join(folder, f"ids-{digest.hexdigest()[:32]}.arrow"),
            new_fingerprint=digest.hexdigest()[:32],
            desc="tokenizing",
        )
    return StoredPairs(stored)


def _encoder(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[dict[str, list[str]]], dict[str, list[Any]]]:
    """Make the function that encodes rows of texts in another process."""

    def encode(rows: dict[str, list[str]]) -> dict[str, list[Any]]:
        pairs = map(TextPair, rows["source"], rows["target"], rows["language"])
        encoded = encode_pairs(tokenizer, list(pairs))
        return {
            "source_ids": [pair.source_ids for pair in encoded],
            "target_ids": [pair.target_ids for pair in encoded],
        }

    return encode


@contextmanager
def _single_threaded_tokenizers() -> Iterator[None]:
    """Keep `tokenizers` to one thread, since its threads do not survive the fork of a process.

    It would say so in a warning in every process. The environment is how it is told.
    """
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
