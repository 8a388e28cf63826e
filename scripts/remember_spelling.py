#!/usr/bin/env python
r"""Let a saved model remember how the words of its training are spelled.

    python scripts/remember_spelling.py runs/words words.tsv
    python scripts/remember_spelling.py models/pronounce-11 train.tsv \
        --source_lang word --target_lang phones --language_tag language

A model remembers it by its training. One that was trained before models did learns it here: from
the table that it was trained on, its folder gets the letters and the rows of three letters of each
language, in tokenizer_config.json; nothing else is changed. `hf-qrnn pronounce` refuses by them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hf_qrnn.data.flags import typed
from hf_qrnn.data.json_files import read_json
from hf_qrnn.data.reading import read_pairs_file
from hf_qrnn.data.symbols import with_alphabets, with_spellings
from hf_qrnn.data.tokenization import load_tokenizer
from hf_qrnn.data.trigrams import FIELD
from hf_qrnn.training.stopping import exit_status

_CONFIG = "tokenizer_config.json"


def main(argv: list[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of a saved model")
    parser.add_argument("table", type=Path, help="its training pairs, as --train_file")
    for name in ("source_lang", "target_lang", "language_tag"):
        parser.add_argument(f"--{name}", help="as in the training")
    return exit_status(lambda: run(parser.parse_args(argv)))


def run(args: argparse.Namespace) -> None:
    """Write what the sources of the table tell into the folder."""
    with typed(path="table"):
        pairs = read_pairs_file(
            args.table,
            source_lang=args.source_lang,
            target_lang=args.target_lang,
            language_tag=args.language_tag,
        )
    with typed(tokenizer="folder"):
        tokenizer = load_tokenizer(str(args.folder))
    sources = [(pair.language, pair.source) for pair in pairs]
    knowing = with_spellings(with_alphabets(tokenizer, sources), sources)
    found = knowing.init_kwargs.get(FIELD) or {}
    if not found:
        raise ValueError(
            "`folder` must have a model with `--target_tokens blank` and words as sources, but is "
            f"'{args.folder}'."
        )
    path = args.folder / _CONFIG
    fields = read_json(path)
    # Not by saving the tokenizer, which writes more anew.
    for name in ("alphabets", FIELD):
        if knowing.init_kwargs.get(name):
            fields[name] = knowing.init_kwargs[name]
    text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")
    for language, known in found.items():
        print(f"{language or 'words'}: at most {known['most_new']} new rows of letters a word")


if __name__ == "__main__":
    sys.exit(main())
