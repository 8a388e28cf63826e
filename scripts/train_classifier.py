#!/usr/bin/env python
"""Train a quasi-recurrent classifier of texts (section 3.1 of arXiv 1611.01576).

    python scripts/train_classifier.py --config scripts/configs/sentiment_imdb_paper.yaml \
        --train_file train.jsonl --test_file test.jsonl --output_dir runs/sentiment

A row of the files (.jsonl, .csv, .tsv, .parquet) or of `--dataset_name` has a text and a label,
under `--text_column` and `--label_column`; the labels are those of the training texts. The best
model is the most accurate one. docs/classifier.md tells of words, word vectors and language models
to begin with. Leaves what scripts/train_translation.py does, with a picture of states instead of
attention, and goes on, is pushed and runs in several processes in the same way (docs/training.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from hf_qrnn.training.classification_task import ClassificationTask
from hf_qrnn.training.run import run_task
from hf_qrnn.training.stopping import end_process


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 2 after a mistake, 3 after divergence, 75 after a signal."""
    return run_task(ClassificationTask, argv)


if __name__ == "__main__":
    end_process(main)
