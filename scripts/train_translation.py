#!/usr/bin/env python
"""Train a quasi-recurrent translation model (section 3.3 of arXiv 1611.01576).

    python scripts/train_translation.py --config scripts/configs/translation_modern.yaml \
        --train_source train.de --train_target train.en \
        --valid_source val.de --valid_target val.en --output_dir runs/mine

Leaves in `output_dir` the best model by `--metric` on the validation data (weights, config, code,
tokenizer), and `run.json`, `metrics.jsonl`, `training.json`, `learning_curve.png`,
`attention.png`, the model card `README.md` and `checkpoints/`; with test data also `test.json` and
`test.hypotheses.txt`.
`--push_to_hub --hub_model_id user/name` pushes the model at the end (docs/hub.md). Also runs under
`accelerate launch` and `torchrun`; `--resume auto` goes on where any interruption left it
(docs/training.md).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import hf_qrnn
from hf_qrnn.data.batching import (
    Batch,
    BucketBatchSampler,
    EncodedPair,
    EpochPlan,
    encode_pairs,
    hash_pairs,
    make_loader,
)
from hf_qrnn.data.flags import typed
from hf_qrnn.data.reading import DataOptions, TextPair, TranslationData, load_translation_data
from hf_qrnn.data.streaming import StreamBatches, encode_stored
from hf_qrnn.data.tokenization import (
    encode_batch,
    load_tokenizer,
    make_byte_tokenizer,
    train_character_tokenizer,
)
from hf_qrnn.hub.client import quiet_http_log
from hf_qrnn.model.limits_qrnn import DEFAULT_OFFSET, DEFAULT_RATIO, length_rule, set_length_rule
from hf_qrnn.training.best import Choice, choose_metric, forget_best, order_by
from hf_qrnn.training.cards import describe_data
from hf_qrnn.training.checkpoint import CheckpointFolder, find_checkpoint, read_marker
from hf_qrnn.training.evaluation import mean_loss, score_pairs
from hf_qrnn.training.fine_tuning import Base, begin, find_base, has_base
from hf_qrnn.training.learning_curve import learning_curve_figure
from hf_qrnn.training.loop import LoopOptions, Trainer
from hf_qrnn.training.options import (
    ModelOptions,
    PublishOptions,
    RunOptions,
    TokenizerOptions,
    flag_names,
    parse_options,
)
from hf_qrnn.training.processes import (
    Processes,
    describe_processes,
    make_accelerator,
    start_trackers,
)
from hf_qrnn.training.publish import check_publishing, publish_run
from hf_qrnn.training.run_folder import RunFolder, write_lines
from hf_qrnn.training.run_state import full_weights
from hf_qrnn.training.stopping import end_process, exit_status
from hf_qrnn.translation.lengths import measure_lengths
from hf_qrnn.translation.plots import save_figure
from hf_qrnn.translation.translator import one_line

logger = logging.getLogger("train_translation")
KINDS = (DataOptions, TokenizerOptions, ModelOptions, LoopOptions, RunOptions, PublishOptions)


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


def prepare(
    base: Base | None,
    tokenizer_options: TokenizerOptions,
    model_options: ModelOptions,
    train: list[TextPair],
    seed: int,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Base | None]:
    """Model and tokenizer before the first update; also what `base` became with the new data."""
    if base is None:
        tokenizer = make_tokenizer(tokenizer_options, train)
        return make_model(model_options, tokenizer), tokenizer, None
    texts = (text for pair in train for text in (pair.source, pair.target))
    base = begin(base, model_options, tokenizer_options, texts, seed=seed)
    return base.model, base.tokenizer, base


def chars_per_token(pairs: list[TextPair], encoded: Sequence[EncodedPair]) -> tuple[float, float]:
    """Source and target characters per token, end tokens included among the tokens."""
    source = sum(len(pair.source) for pair in pairs) / sum(len(x.source_ids) for x in encoded)
    target = sum(len(pair.target) for pair in pairs) / sum(len(x.target_ids) for x in encoded)
    return source, target


def make_batches(
    tokenizer: PreTrainedTokenizerBase,
    data: TranslationData,
    loop: LoopOptions,
    options: RunOptions,
    processes: Processes,
) -> tuple[EpochPlan, Iterable[Batch], Sequence[EncodedPair]]:
    """The plan of an epoch, its batches, and the training pairs as ids (of a stream the first)."""
    if data.num_proc > 0:
        encoded = processes.main_first(
            lambda: encode_stored(tokenizer, data.train, num_proc=data.num_proc)
        )
    else:
        encoded = encode_pairs(tokenizer, data.train)
    kind = {"max_tokens": loop.max_tokens, "seed": options.seed}
    share = {"world_size": processes.count, "rank": processes.rank}
    if data.stream is not None:
        stream = StreamBatches(data.stream, tokenizer, **kind, **share)
        return stream, stream, encoded
    sampler = BucketBatchSampler(encoded, **kind, **share)
    pad: int = tokenizer.pad_token_id
    loader = make_loader(encoded, sampler, pad_token_id=pad, num_workers=options.num_workers)
    return sampler, loader, encoded


def num_shown(data: TranslationData, options: RunOptions) -> int:
    """How many validation sentences, the first ones, are translated each time."""
    wanted, there = options.eval_sentences, len(data.valid)
    return there if wanted < 0 else min(wanted, there)


def choose(
    data: TranslationData,
    options: RunOptions,
    checkpoints: CheckpointFolder,
    resumed: Path | None,
) -> Choice:
    """The metric of the best model and of the best checkpoints; a resumed run goes on with its."""
    choice = choose_metric(
        options.metric,
        data.valid,
        num_shown(data, options),
        bleu_tokenize=options.bleu_tokenize,
        before="" if resumed is None else read_marker(resumed).get("best_by", ""),
    )
    checkpoints.best_by = choice.best_by
    return choice


def limit_lengths(
    model: PreTrainedModel, encoded: Sequence[EncodedPair], *, is_stream: bool
) -> None:
    """Save with the model how long translations may become, by what the training pairs have."""
    least = length_rule(model.generation_config) or (DEFAULT_RATIO, DEFAULT_OFFSET)
    ratio, offset = measure_lengths(encoded, least=least)
    set_length_rule(model.generation_config, ratio, offset)
    seen = f"the first {len(encoded)} pairs of the stream" if is_stream else "the training pairs"
    logger.info(
        "translations may have %g x source + %d tokens, by %s with room", ratio, offset, seen
    )


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TranslationData,
    loop: LoopOptions,
    options: RunOptions,
    folder: RunFolder,
    accelerator: Accelerator,
    checkpoints: CheckpointFolder,
    choice: Choice,
) -> Trainer:
    """The trainer whose best model, by the metric chosen, ends in the folder."""
    processes = Processes(accelerator)
    sampler, loader, encoded = make_batches(tokenizer, data, loop, options, processes)
    limit_lengths(model, encoded, is_stream=data.stream is not None)
    share = {"world_size": processes.count, "rank": processes.rank}
    valid = encode_pairs(tokenizer, data.valid)
    in_order = BucketBatchSampler(valid, max_tokens=loop.max_tokens, shuffle=False, **share)
    valid_loader = make_loader(valid, in_order, pad_token_id=tokenizer.pad_token_id)
    references = [pair.target for pair in data.valid[: num_shown(data, options)]]
    sources = [pair.source_ids for pair in valid[: len(references)]]
    size, tokens = options.eval_batch_size, options.bleu_tokenize
    score = partial(score_pairs, batch_size=size, bleu_tokenize=tokens)

    def log(record: dict[str, Any]) -> None:
        folder.log(record)
        numbers = {f"{record['kind']}/{k}": v for k, v in record.items() if type(v) in (int, float)}
        accelerator.log(numbers, step=record["step"])

    def validate(step: int) -> tuple[float, dict[str, Any]]:
        loss = mean_loss(trainer.model, valid_loader, accelerator.device, processes)
        record: dict[str, Any] = {"loss": loss}
        if references:
            record |= score(model, tokenizer, sources, references, processes)[0]
        logger.info("update %d: %s", step, json.dumps(record))
        return choice.score(record), record

    trainer = Trainer(
        model,
        loader,
        sampler,
        loop,
        accelerator,
        chars_per_token=chars_per_token(data.train, encoded),
        log=log,
        validate=validate,
        save_best=lambda: folder.save_model(model, tokenizer, full_weights(trainer.model)),
        checkpoints=checkpoints,
        identity={
            "training data": hash_pairs(encoded),
            "seed": options.seed,
            "mixed_precision": options.mixed_precision,
            "model": {**model.config.to_diff_dict(), "transformers_version": None},
            **loop.shaping(),
        },
    )
    return trainer


def score_test(
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[TextPair],
    options: RunOptions,
    folder: RunFolder,
    trainer: Trainer,
) -> None:
    """Translate the test set with the best model, reloaded; write its scores and translations."""
    best = hf_qrnn.QRNNForConditionalGeneration.from_pretrained(folder.path)
    best.to(trainer.accelerator.device)
    record, texts = score_pairs(
        best,
        tokenizer,
        encode_batch(tokenizer, [pair.source for pair in pairs]),
        [pair.target for pair in pairs],
        trainer.processes,
        batch_size=options.eval_batch_size,
        num_beams=options.num_beams,
        num_resamples=1000,
        bleu_tokenize=options.bleu_tokenize,
    )
    folder.write_json("test.json", record)
    if folder.is_main_process:
        write_lines(folder.path / "test.hypotheses.txt", [one_line(text) for text in texts])
    logger.info("test: %s", json.dumps(record))


def open_folder(
    options: RunOptions, loop: LoopOptions, processes: Processes
) -> tuple[RunFolder, CheckpointFolder, Path | None]:
    """The run's folder, its checkpoints, and the one to go on from; nothing is touched yet."""
    folder = RunFolder(
        Path(options.output_dir),
        is_main_process=processes.is_main,
        draw_curve=lambda records, path: save_figure(learning_curve_figure(records), path),
        may_be_used=options.resume != "never" or options.overwrite_output_dir,
    )
    checkpoints = make_checkpoints(options, loop)
    processes.together(folder.check)
    return (
        folder,
        checkpoints,
        processes.together(lambda: find_checkpoint(options.resume, checkpoints)),
    )


def finish(
    tokenizer: PreTrainedTokenizerBase,
    test: list[TextPair],
    options: RunOptions,
    publish: PublishOptions,
    folder: RunFolder,
    trainer: Trainer,
) -> None:
    """What follows training: how it ended, the test set's scores, the card, a push."""
    ended = {**asdict(trainer.state), "weights_sha256": trainer.weights_hash()}
    trainer.processes.together(lambda: folder.write_json("training.json", ended))
    trainer.accelerator.wait_for_everyone()
    if test:
        score_test(tokenizer, test, options, folder, trainer)
    if folder.is_main_process:
        publish_run(folder.path, publish)
    trainer.accelerator.end_training()


def make_checkpoints(options: RunOptions, loop: LoopOptions) -> CheckpointFolder:
    """The checkpoints of the run's folder."""
    path = Path(options.output_dir) / "checkpoints"
    return CheckpointFolder(path, keep_last=loop.keep_last, keep_best=loop.keep_best)


def keep_base(base: Base | None, folder: RunFolder, resumed: Path | None) -> dict[str, Any] | None:
    """Put what the run began with into its folder, unless it is there; what run.json says of it."""
    if base is None:
        return None
    is_own = resumed is not None and resumed.resolve().parents[1] == folder.path.resolve()
    if folder.is_main_process and not (is_own and has_base(folder.path)):
        base.save(folder.path)
    return base.record()


def run(
    data_options: DataOptions,
    tokenizer_options: TokenizerOptions,
    model_options: ModelOptions,
    loop: LoopOptions,
    options: RunOptions,
    publish: PublishOptions,
    base: Base | None = None,
) -> None:
    """Load, train, and score the best model on the test set."""
    if options.num_threads > 0:
        torch.set_num_threads(options.num_threads)
    accelerator = make_accelerator(options)
    processes = Processes(accelerator)
    if not processes.is_main:
        logger.setLevel(logging.WARNING)
    about = describe_processes(accelerator)
    logger.info(about)
    # All is read and compared before anything is written: what is refused leaves no trace.
    folder, checkpoints, resumed = open_folder(options, loop, processes)
    set_seed(options.seed)
    data = processes.together(lambda: load_translation_data(data_options))
    model, tokenizer, base = prepare(
        base, tokenizer_options, model_options, data.train, options.seed
    )
    # Saved with the model: whoever generates with it, generates as its test set was scored.
    model.generation_config.no_repeat_ngram_size = options.no_repeat_ngram_size or None
    set_seed(options.seed, device_specific=True)  # dropout differs between processes
    choice = choose(data, options, checkpoints, resumed)
    trainer = make_trainer(
        model, tokenizer, data, loop, options, folder, accelerator, checkpoints, choice
    )
    if resumed is not None:
        trainer.restore(resumed)
        logger.info("resumed from %s", resumed)
    is_resumed = resumed is not None
    processes.together(
        lambda: check_publishing(publish, is_resumed=is_resumed) if processes.is_main else None
    )
    with folder.lock:
        groups = (data_options, tokenizer_options, model_options, loop, options, publish)
        given = {name: value for group in groups for name, value in asdict(group).items()}
        counts = {**describe_data(data.train, data.valid, data.test), "filter": str(data.report)}
        overwrite = options.overwrite_output_dir
        goes_on = processes.together(
            lambda: folder.begin(checkpoints, resumed=resumed, overwrite=overwrite)
        )
        if not processes.gather(goes_on)[0]:
            forget_best(trainer.state)  # the best model of the run gone on with is not here
        began = processes.together(lambda: keep_base(base, folder, resumed))
        described = accelerator.device, about, choice.metric, began
        processes.together(lambda: folder.describe(given, counts, model, *described))
        start_trackers(accelerator, given)
        logger.info("%s; %d parameters", data.report, model.num_parameters())
        logger.info(order_by(trainer.state, choice))
        trainer.train()
        finish(tokenizer, data.test, options, publish, folder, trainer)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 2 after a mistake, 3 after divergence, 75 after a signal."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_http_log()

    def work() -> None:
        with typed(flag_names(KINDS)):
            groups = parse_options(KINDS, argv)
            base = find_base(groups[4], make_checkpoints(groups[4], groups[3]))
            if base is not None:
                groups = parse_options(KINDS, argv, defaults=base.options())
            run(*groups, base)

    return exit_status(work)


if __name__ == "__main__":
    end_process(main)
