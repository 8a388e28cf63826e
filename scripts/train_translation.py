#!/usr/bin/env python
"""Train a quasi-recurrent translation model (section 3.3 of arXiv 1611.01576).

    python scripts/train_translation.py --config scripts/configs/translation_modern.yaml \
        --train_source train.de --train_target train.en \
        --valid_source val.de --valid_target val.en --output_dir runs/mine

Leaves in `output_dir` the best model by validation score (weights, config, code, tokenizer), and
`run.json`, `metrics.jsonl`, `learning_curve.png`; with test data also `test.json` and
`test.hypotheses.txt`. Also runs under `accelerate launch`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import hf_qrnn
from hf_qrnn.generation import generate_hypotheses
from hf_qrnn.plots import learning_curve_figure, save_figure
from hf_qrnn.tokenization import (
    decode_batch,
    encode_batch,
    load_tokenizer,
    make_byte_tokenizer,
    train_character_tokenizer,
)
from hf_qrnn.training.batching import BucketBatchSampler, EncodedPair, encode_pairs, make_loader
from hf_qrnn.training.data import DataOptions, TextPair, TranslationData, load_translation_data
from hf_qrnn.training.loop import LoopOptions, Trainer, mean_loss
from hf_qrnn.training.options import ModelOptions, RunOptions, TokenizerOptions, parse_options
from hf_qrnn.training.run_folder import RunFolder, write_lines
from hf_qrnn.training.scoring import score_translations

logger = logging.getLogger("train_translation")


def make_tokenizer(options: TokenizerOptions, train: list[TextPair]) -> PreTrainedTokenizerBase:
    """The tokenizer that `--tokenizer` names; "char" learns its vocabulary from both sides."""
    if options.tokenizer == "byte":
        return make_byte_tokenizer(nfc=options.nfc)
    if options.tokenizer == "char":
        texts = (text for pair in train for text in (pair.source, pair.target))
        return train_character_tokenizer(texts, min_count=options.min_count, nfc=options.nfc)
    return load_tokenizer(options.tokenizer)


def make_model(options: ModelOptions, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model with random weights for the tokenizer's ids."""
    start = tokenizer.bos_token_id
    config = hf_qrnn.QRNNConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id if start is None else start,
        **asdict(options),
    )
    return hf_qrnn.QRNNForConditionalGeneration(config)


def score_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[TextPair],
    batch_size: int,
    num_beams: int = 1,
) -> tuple[dict[str, Any], list[str]]:
    """Translate the sources; scores with their signatures, and the translations."""
    sources = encode_batch(tokenizer, [pair.source for pair in pairs])
    best = generate_hypotheses(model, sources, num_beams=num_beams, batch_size=batch_size)
    texts = decode_batch(tokenizer, [hypotheses[0].ids for hypotheses in best])
    scores = score_translations(texts, [pair.target for pair in pairs], metrics=("bleu", "chrf"))
    record: dict[str, Any] = {"exact_match": scores.exact_match, "sentences": len(pairs)}
    record["num_beams"] = num_beams
    for name in ("bleu", "chrf"):
        score = getattr(scores, name)
        record[name], record[f"{name}_signature"] = score.score, score.signature
    return record, texts


def chars_per_token(pairs: list[TextPair], encoded: list[EncodedPair]) -> tuple[float, float]:
    """Source and target characters per token, end tokens included among the tokens."""
    source = sum(len(pair.source) for pair in pairs) / sum(len(x.source_ids) for x in encoded)
    target = sum(len(pair.target) for pair in pairs) / sum(len(x.target_ids) for x in encoded)
    return source, target


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TranslationData,
    loop: LoopOptions,
    options: RunOptions,
    folder: RunFolder,
    accelerator: Accelerator,
) -> None:
    """Train; the best model by validation BLEU, or loss without BLEU, ends in the folder."""
    encoded, valid = encode_pairs(tokenizer, data.train), encode_pairs(tokenizer, data.valid)
    sampler = BucketBatchSampler(
        encoded,
        max_tokens=loop.max_tokens,
        seed=options.seed,
        world_size=accelerator.num_processes,
        rank=accelerator.process_index,
    )
    in_order = BucketBatchSampler(valid, max_tokens=loop.max_tokens, shuffle=False)
    pad: int = tokenizer.pad_token_id
    valid_loader = make_loader(valid, in_order, pad_token_id=pad)
    shown = data.valid if options.eval_sentences < 0 else data.valid[: options.eval_sentences]

    def validate(step: int) -> tuple[float, dict[str, Any]]:
        record: dict[str, Any] = {"loss": mean_loss(model, valid_loader, accelerator.device)}
        if shown:
            record.update(score_pairs(model, tokenizer, shown, options.eval_batch_size)[0])
        logger.info("update %d: %s", step, json.dumps(record))
        return record.get("bleu", -record["loss"]), record

    Trainer(
        model,
        make_loader(encoded, sampler, pad_token_id=pad),
        sampler,
        loop,
        accelerator,
        chars_per_token=chars_per_token(data.train, encoded),
        log=folder.log,
        validate=validate,
        save_best=lambda: folder.save_model(model, tokenizer),
    ).train()


def run(
    data_options: DataOptions,
    tokenizer_options: TokenizerOptions,
    model_options: ModelOptions,
    loop: LoopOptions,
    options: RunOptions,
) -> None:
    """Load, train, and score the best model on the test set."""
    if options.num_threads > 0:
        torch.set_num_threads(options.num_threads)
    accelerator = Accelerator(cpu=options.cpu, mixed_precision=options.mixed_precision)
    if not accelerator.is_main_process:
        logger.setLevel(logging.WARNING)
    set_seed(options.seed)
    data = load_translation_data(data_options)
    tokenizer = make_tokenizer(tokenizer_options, data.train)
    model = make_model(model_options, tokenizer)
    folder = RunFolder(
        Path(options.output_dir),
        is_main_process=accelerator.is_main_process,
        draw_curve=lambda records, path: save_figure(learning_curve_figure(records), path),
    )
    groups = (data_options, tokenizer_options, model_options, loop, options)
    given = {name: value for group in groups for name, value in asdict(group).items()}
    sizes = {"train": len(data.train), "valid": len(data.valid), "test": len(data.test)}
    folder.describe(given, {**sizes, "filter": str(data.report)}, model, accelerator.device)
    logger.info("%s; %d parameters", data.report, model.num_parameters())
    train(model, tokenizer, data, loop, options, folder, accelerator)
    if data.test and accelerator.is_main_process:
        best = hf_qrnn.QRNNForConditionalGeneration.from_pretrained(folder.path)
        best.to(accelerator.device)
        record, texts = score_pairs(
            best, tokenizer, data.test, options.eval_batch_size, num_beams=options.num_beams
        )
        folder.write_json("test.json", record)
        write_lines(folder.path / "test.hypotheses.txt", texts)
        logger.info("test: %s", json.dumps(record))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 2 after a user's mistake, told in one sentence."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    kinds = (DataOptions, TokenizerOptions, ModelOptions, LoopOptions, RunOptions)
    try:
        run(*parse_options(kinds, argv))
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
