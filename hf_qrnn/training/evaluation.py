"""Measures a model on the validation pairs, with the work spread over the processes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_qrnn.data.batching import Batch
from hf_qrnn.data.tokenization import decode_batch
from hf_qrnn.metrics.scoring import METRICS, Score, score_translations
from hf_qrnn.metrics.table import VALIDATED
from hf_qrnn.translation.search import generate_hypotheses

from .processes import Processes


def run_batch(model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Any:
    """Run a model with labels on a batch; its output's `loss` is the sum over the target tokens.

    The sum, by a number that never changes: a compiled model would be compiled again for every
    other.
    """
    return model(**batch.inputs, num_items_in_batch=1, smoothing=smoothing)


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    loader: DataLoader[Batch],
    device: torch.device,
    processes: Processes | None = None,
) -> float:
    """Compute the negative log-likelihood of all targets, in nats per target token.

    Args:
        model: The model, as prepared for training.
        loader: The batches of this process, as many as on every other.
        device: Where the model is.
        processes: Those that share the batches; None = this one alone.
    """
    was_training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    for batch in loader:
        # A filler is computed too: a wrapped model may wait for the other processes in `forward`.
        loss = float(run_batch(model, batch.to(device)).loss)  # the sum over tokens
        if not batch.is_filler:
            nats += loss
            tokens += batch.num_target_tokens
    model.train(was_training)
    # Nats and tokens are summed apart: processes have different numbers of tokens.
    sums = [nats, float(tokens)] if processes is None else processes.sum([nats, tokens])
    return sums[0] / max(1.0, sums[1])


def translate_sources(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Sequence[int]],
    processes: Processes,
    *,
    batch_size: int,
    num_beams: int = 1,
) -> tuple[list[str], int]:
    """Translate each source; every process does its share, and gets all translations.

    A translation does not depend on the batch it is in, so the number of processes changes
    nothing.

    Args:
        model: The model itself, not wrapped for training.
        tokenizer: Its tokenizer.
        sources: Source ids, each with its end token.
        processes: Those that share the work.
        batch_size: Sources of a batch.
        num_beams: Width of the beam search; 1 is greedy.

    Returns:
        The best translation of each source, and the number of translations that reached their
        length limit before their end.
    """
    # Every count-th one: the shares differ by one source at most.
    own = range(processes.rank, len(sources), processes.count)
    rows = [sources[index] for index in own]
    best = generate_hypotheses(model, rows, num_beams=num_beams, batch_size=batch_size)
    texts = decode_batch(tokenizer, [hypotheses[0].ids for hypotheses in best])
    num_cut = processes.sum([sum(hypotheses[0].is_cut for hypotheses in best)])[0]
    shares = processes.gather(texts)
    # Source i was number i // count of the process i % count.
    ordered = [
        shares[index % processes.count][index // processes.count] for index in range(len(sources))
    ]
    return ordered, int(num_cut)


def score_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Sequence[int]],
    references: Sequence[str],
    processes: Processes,
    *,
    batch_size: int,
    num_beams: int = 1,
    num_resamples: int = 0,
    bleu_tokenize: str = "13a",
) -> tuple[dict[str, Any], list[str]]:
    """Translate the sources and score the translations by all metrics but the slow ones.

    Args:
        model: The model itself, not wrapped for training.
        tokenizer: Its tokenizer.
        sources: Source ids, each with its end token.
        references: The right translation of each source.
        processes: Those that share the work.
        batch_size: Sources of a batch.
        num_beams: Width of the beam search; 1 is greedy.
        num_resamples: Test sets drawn by bootstrap, for confidence intervals; 0 = no intervals.
        bleu_tokenize: sacrebleu's name of the tokenizer for BLEU.

    Returns:
        The record, with scores and signatures, and the translations.
    """
    texts, num_cut = translate_sources(
        model,
        tokenizer,
        sources,
        processes,
        batch_size=batch_size,
        num_beams=num_beams,
    )
    metrics = [metric.name for metric in VALIDATED if metric.name in METRICS]
    scores = score_translations(texts, references, metrics=metrics, bleu_tokenize=bleu_tokenize)
    record: dict[str, Any] = {"sentences": len(references), "num_beams": num_beams}
    record["cut_translations"] = num_cut
    for metric in VALIDATED:
        found: Score | float = getattr(scores, metric.name)
        if isinstance(found, Score):
            record[metric.name] = found.score
            record[f"{metric.name}_signature"] = found.signature
        else:
            record[metric.name] = found
    if num_resamples:
        # Apart from the scores above, whose signatures say nothing of resampling.
        metrics = [metric.name for metric in VALIDATED if metric.scorer is not None]
        drawn = score_translations(
            texts, references, metrics=metrics, num_resamples=num_resamples,
            bleu_tokenize=bleu_tokenize,
        )  # fmt: skip
        for name in metrics:
            score = getattr(drawn, name)
            record[f"{name}_confidence"] = {
                **asdict(score.confidence), "signature": score.signature,
            }  # fmt: skip
    return record, texts
