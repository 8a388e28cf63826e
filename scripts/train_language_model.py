#!/usr/bin/env python
"""Train a quasi-recurrent language model (section 3.2 of arXiv 1611.01576).

    python scripts/train_language_model.py --config scripts/configs/lm_ptb_paper.yaml \
        --train_file ptb.train.txt --valid_file ptb.valid.txt --test_file ptb.test.txt \
        --output_dir runs/ptb

`--tokenizer` is char, word (what stands between blanks), byte or any Hugging Face tokenizer. The
text is cut into `--batch_size` rows, of which an update reads the next `--sequence_length` tokens,
from the state that the update before left. Perplexity and bits per character of the validation text
come from one pass over all of it. At the end the best model writes `--sample_tokens` tokens, for
its card. Leaves what scripts/train_translation.py does, but for pictures of attention, and goes on,
is pushed and runs in several processes in the same way (docs/training.md, docs/language_models.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from hf_qrnn.training.language_model_task import LanguageModelTask
from hf_qrnn.training.run import run_task
from hf_qrnn.training.stopping import end_process


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 2 after a mistake, 3 after divergence, 75 after a signal."""
    return run_task(LanguageModelTask, argv)


if __name__ == "__main__":
    end_process(main)
