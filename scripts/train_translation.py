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

from collections.abc import Sequence

from hf_qrnn.training.run import run_task
from hf_qrnn.training.stopping import end_process
from hf_qrnn.training.translation_task import TranslationTask


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 2 after a mistake, 3 after divergence, 75 after a signal."""
    return run_task(TranslationTask, argv)


if __name__ == "__main__":
    end_process(main)
