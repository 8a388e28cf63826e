"""Names of the files that a saved model's folder may have beside its weights and its config."""

from __future__ import annotations

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja",
)  # fmt: skip
VOCABULARY_FILES = (
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "spm.model",
    "sentencepiece.model", "sentencepiece.bpe.model", "spm_char.model", "source.spm", "target.spm",
    "target_vocab.json", "vocab-src.json", "vocab-tgt.json", "bpe.codes", "dict.txt",
)  # fmt: skip
"""What transformers' tokenizers load from where there is no tokenizer.json."""
