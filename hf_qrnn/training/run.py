"""Runs of any task: open the folder, resume, train, and finish.

A script ends with

    if __name__ == "__main__":
        end_process(lambda: run_task(MyTask))
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from hf_qrnn.data.flags import typed
from hf_qrnn.hub.client import quiet_http_log
from hf_qrnn.translation.plots import save_figure

from .best import Choice, forget_best, order_by
from .checkpoint import CheckpointFolder, find_checkpoint, read_marker
from .fine_tuning import Base, has_base
from .learning_curve import learning_curve_figure
from .loop import LoopOptions, Trainer
from .memory import bound_kernel_caches
from .options import PublishOptions, RunOptions, flag_names, parse_options
from .processes import (
    Processes,
    advise_processes,
    describe_processes,
    make_accelerator,
    start_trackers,
)
from .publish import check_publishing, publish_run
from .run_folder import RunFolder
from .run_state import full_weights, random_state, set_random_state
from .stopping import exit_status
from .task import Task, checkpoints_of

logger = logging.getLogger(__name__)


def run_task(kind: type[Task], argv: Sequence[str] | None = None) -> int:
    """Run a task's command line; 2 after a mistake, 3 after divergence, 75 after a signal.

    Args:
        kind: The task; its `kinds` are flags, beside those of every run.
        argv: Arguments without the program's name; those of the process when None.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_http_log()
    kinds = (*kind.kinds, LoopOptions, RunOptions, PublishOptions)

    def work() -> None:
        with typed(flag_names(kinds)):
            defaults, without = dict(kind.defaults), _not_offered(kind)
            groups = parse_options(kinds, argv, defaults=defaults, without=without)
            *_, loop, options, _ = groups
            base = kind.find_base(options, checkpoints_of(options, loop))
            if base is not None:
                defaults |= base.options()
                groups = parse_options(kinds, argv, defaults=defaults, without=without)
            *given, loop, options, publish = groups
            task = kind(given, loop, options)
            task.base = base
            _run(task, publish)

    return exit_status(work)


def _not_offered(kind: type[Task]) -> frozenset[str]:
    """Name the flags of every run that mean nothing to the task."""
    begins_anew = kind.find_base.__func__ is Task.find_base.__func__  # type: ignore[attr-defined]
    return kind.without | ({"init_from"} if begins_anew else set())


def _run(task: Task, publish: PublishOptions) -> None:
    """Load, train, and finish; what is refused leaves no trace."""
    options, loop = task.options, task.loop
    if loop.cuda_graphs and options.compile:
        raise ValueError("`cuda_graphs` must be False with --compile, but is True.")
    if options.num_threads > 0:
        torch.set_num_threads(options.num_threads)
    bound_kernel_caches()
    accelerator = make_accelerator(options)
    processes = Processes(accelerator)
    if not processes.is_main:
        logging.getLogger(__package__).setLevel(logging.WARNING)
    about = describe_processes(accelerator)
    logger.info(about)
    if advice := advise_processes(accelerator):
        logger.info(advice)
    # All is read and compared before anything is written.
    folder, checkpoints, resumed = _open_folder(options, loop, processes)
    set_seed(options.seed)
    task.load(processes)
    set_seed(options.seed, device_specific=True)  # dropout differs between processes
    choice = task.choose("" if resumed is None else read_marker(resumed).get("best_by", ""))
    checkpoints.best_by = choice.best_by
    trainer = _make_trainer(task, choice, folder, accelerator, checkpoints)
    if resumed is None:
        _rehearse(task, choice, processes, accelerator.device)
    else:
        trainer.restore(resumed)
        logger.info("resumed from %s", resumed)
    is_resumed = resumed is not None
    processes.together(
        lambda: check_publishing(publish, is_resumed=is_resumed) if processes.is_main else None
    )
    with folder.lock:
        groups = (*task.given, loop, options, publish)
        given = {name: value for group in groups for name, value in asdict(group).items()}
        overwrite = options.overwrite_output_dir
        goes_on = processes.together(
            lambda: folder.begin(checkpoints, resumed=resumed, overwrite=overwrite)
        )
        if not processes.gather(goes_on)[0]:
            forget_best(trainer.state)  # the best model of the run gone on with is not here
        began = processes.together(lambda: _keep_base(task.base, folder, resumed))
        described = accelerator.device, about, choice.metric, began, task.words
        counts = task.describe()
        processes.together(lambda: folder.describe(given, counts, task.model, *described))
        start_trackers(accelerator, given)
        logger.info(order_by(trainer.state, choice))
        trainer.train()
        _finish(task, publish, folder, trainer)


def _rehearse(task: Task, choice: Choice, processes: Processes, device: torch.device) -> None:
    """Let the task look for mistakes; the random numbers of the run are what they were."""
    before = random_state(device)
    task.rehearse(choice, processes)
    set_random_state(before, device)


def _open_folder(
    options: RunOptions, loop: LoopOptions, processes: Processes
) -> tuple[RunFolder, CheckpointFolder, Path | None]:
    """Find the run's folder, its checkpoints, and the one to go on from; touch nothing yet."""
    folder = RunFolder(
        Path(options.output_dir),
        is_main_process=processes.is_main,
        draw_curve=lambda records, path: save_figure(learning_curve_figure(records), path),
        may_be_used=options.resume != "never" or options.overwrite_output_dir,
    )
    checkpoints = checkpoints_of(options, loop)
    processes.together(folder.check)
    resumed = processes.together(lambda: find_checkpoint(options.resume, checkpoints))
    return folder, checkpoints, resumed


def _make_trainer(
    task: Task,
    choice: Choice,
    folder: RunFolder,
    accelerator: Accelerator,
    checkpoints: CheckpointFolder,
) -> Trainer:
    """Make the trainer whose best model, by the metric chosen, ends in the folder."""
    processes, config = Processes(accelerator), task.model.config.to_diff_dict()
    sampler, loader = task.batches(processes)

    def log(record: dict[str, Any]) -> None:
        folder.log(record)
        numbers = {f"{record['kind']}/{k}": v for k, v in record.items() if type(v) in (int, float)}
        accelerator.log(numbers, step=record["step"])

    def validate(step: int) -> tuple[float, dict[str, Any]]:
        record = task.validate(trainer.model, processes, accelerator.device)
        logger.info("update %d: %s", step, json.dumps(record))
        return choice.score(record), record

    trainer = Trainer(
        task.model,
        loader,
        sampler,
        task.loop,
        accelerator,
        forward=task.forward,
        carried=task,
        chars_per_token=task.chars_per_token(),
        log=log,
        validate=validate,
        save_best=lambda: folder.save_model(
            task.model, task.tokenizer, full_weights(trainer.model)
        ),
        checkpoints=checkpoints,
        identity={
            **task.identity(),
            "seed": task.options.seed,
            "mixed_precision": accelerator.mixed_precision,
            # As a checkpoint has it: JSON knows no numbers as keys, which labels have.
            "model": {**json.loads(json.dumps(config)), "transformers_version": None},
            **task.loop.shaping(),
        },
    )
    return trainer


def _keep_base(base: Base | None, folder: RunFolder, resumed: Path | None) -> dict[str, Any] | None:
    """Put what the run began with into its folder, unless it is there; what run.json says of it."""
    if base is None:
        return None
    is_own = resumed is not None and resumed.resolve().parents[1] == folder.path.resolve()
    if folder.is_main_process and not (is_own and has_base(folder.path)):
        base.save(folder.path)
    return base.record()


def _finish(task: Task, publish: PublishOptions, folder: RunFolder, trainer: Trainer) -> None:
    """Write how training ended, measure the test set, write the card, and push."""
    ended = {**asdict(trainer.state), "weights_sha256": trainer.weights_hash()}
    trainer.processes.together(lambda: folder.write_json("training.json", ended))
    trainer.accelerator.wait_for_everyone()
    task.finish(trainer, folder)
    if folder.is_main_process:
        task.illustrate(folder.path)
        publish_run(folder.path, publish)
    trainer.accelerator.end_training()
