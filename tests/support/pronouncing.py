"""A small model that has learnt to pronounce eight letters, one of which has two sounds."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.data.symbols import encode_sources, encode_targets, train_symbol_tokenizer
from hf_qrnn.model.limits_qrnn import set_length_rule

# "d" is as often one as the other. "'" is silent.
SOUNDS = {"a": "AA1", "b": "B", "d": "D", "e": "EH0", "i": "IY2", "k": "K", "s": "S"}
SOUNDS.update({"x": "K S", "'": ""})
RATIO, OFFSET = 2.5, 3


def sounds(word: str) -> tuple[str, ...]:
    """Pronounce by the rules, "d" as D."""
    return tuple(" ".join(SOUNDS[letter] for letter in word).split())


def save_pronouncer(folder: Path, *, languages: Sequence[str] = (), steps: int = 150) -> str:
    """Train the model for seconds and save it; with languages all of them pronounce alike."""
    random.seed(0)
    torch.manual_seed(0)
    pairs = []
    for _ in range(1000):
        word = "".join(random.choices([*SOUNDS], k=random.randint(1, 7)))
        target = " ".join(sounds(word))
        pairs.append((word, "".join(random.choice("DT") if x == "D" else x for x in target)))
    sources, targets = zip(*pairs, strict=True)
    tokenizer = train_symbol_tokenizer(sources, targets, languages=languages)
    network = QRNNForConditionalGeneration(
        QRNNConfig(
            vocab_size=len(tokenizer),
            embedding_size=24,
            hidden_size=48,
            encoder_layers=1,
            decoder_layers=1,
            encoder_kernel_sizes=3,
        )
    )
    set_length_rule(network.generation_config, RATIO, OFFSET)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        rows = random.sample(range(len(pairs)), 64)
        language = random.choice(languages) if languages else None
        inputs = encode_sources(tokenizer, [sources[row] for row in rows], language)
        labels = encode_targets(tokenizer, [targets[row] for row in rows])
        batch = tokenizer.pad({"input_ids": inputs}, return_tensors="pt")
        width = max(map(len, labels))
        loss = network(
            **batch, labels=torch.tensor([row + [-100] * (width - len(row)) for row in labels])
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
