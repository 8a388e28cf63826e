"""Begins an embedding with the word vectors of a file: `--word_vectors FILE`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_qrnn.data.flags import typed
from hf_qrnn.data.word_vectors import read_word_vectors


@dataclass(frozen=True)
class Coverage:
    """The part of a vocabulary that a file of word vectors has.

    Attributes:
        file: The name of the file.
        ids: Those of the tokens found.
        vocabulary: Number of all tokens.
        sha256: That of the vectors taken, in the order of the ids.
    """

    file: str
    ids: frozenset[int] = field(repr=False)
    vocabulary: int
    sha256: str

    def record(self, rows: Iterable[Sequence[int]]) -> dict[str, Any]:
        """Describe it for run.json and the card, with the share of all tokens in `rows`."""
        total = covered = 0
        for row in rows:
            total += len(row)
            covered += sum(index in self.ids for index in row)
        return {
            "file": self.file,
            "found": len(self.ids),
            "vocabulary": self.vocabulary,
            "share_of_tokens": covered / max(1, total),
            "sha256": self.sha256,
        }


@torch.no_grad()
def set_word_vectors(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str
) -> Coverage:
    """Put the vectors of a file into the embedding; the tokens it does not have stay random.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not of word vectors as wide as the embedding, or has none of the
            tokens.
    """
    vocabulary = tokenizer.get_vocab()
    with typed(path="word_vectors"):
        found = read_word_vectors(path, vocabulary, size=model.config.embedding_size)
    if not found:
        raise ValueError(f"`word_vectors` must hold a word of the texts, but {path!r} has none.")
    embedding: Any = model.get_input_embeddings()
    weight: torch.Tensor = embedding.weight
    by_id = {vocabulary[word]: vector for word, vector in found.items()}
    ids = sorted(by_id)
    weight[ids] = torch.stack([torch.from_numpy(by_id[index]) for index in ids]).to(weight)
    digest = hashlib.sha256(weight[ids].cpu().numpy().tobytes()).hexdigest()
    return Coverage(Path(path).name, frozenset(ids), len(vocabulary), digest)
