"""Random translation models in folders, with a tokenizer, for the tests of the engine."""

import random
import shutil
from pathlib import Path
from typing import Any

import torch
from sources import ROOT

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration, train_character_tokenizer
from hf_qrnn.engine.network import Network, read_network
from hf_qrnn.engine.settings import read_settings
from hf_qrnn.engine.weights import Weights

LETTERS = "abcdefghijklmnopqrstuvwxyz äöüß.,"
VOCAB_SIZE = 4 + len(LETTERS)


def random_config(seed: int) -> QRNNConfig:
    """Draw everything that a config can say of a computation; sizes that all differ."""
    draw = random.Random(seed)
    decoder_layers = draw.randint(1, 3)
    encoder_layers = decoder_layers + draw.randint(0, 1)
    around: dict[str, Any] = draw.choice([{}, {"residual": True}, {"dense_connections": True}])
    return QRNNConfig(
        vocab_size=VOCAB_SIZE,
        embedding_size=draw.choice([12, 7]),
        hidden_size=12,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_kernel_sizes=draw.choice(
            [None, 1, [draw.randint(1, 5) for _ in range(encoder_layers)]]
        ),
        decoder_kernel_sizes=draw.choice(
            [None, 1, [draw.randint(1, 4) for _ in range(decoder_layers)]]
        ),
        pooling=draw.choice(["f", "fo", "ifo"]),
        encoder_causal=draw.random() < 0.5,
        encoder_bidirectional=draw.random() < 0.5,
        reverse_source=draw.random() < 0.5,
        rms_norm=draw.random() < 0.5,
        attention_layers=draw.choice(["last", "all"]),
        num_attention_heads=draw.choice([1, 2, 3]),
        attention_scaling=draw.random() < 0.5,
        feed_forward_size=draw.choice([0, 10]),
        tie_word_embeddings=draw.random() < 0.5,
        initializer_range=1.0,
        **around,
    )


def random_model(config: QRNNConfig, seed: int = 0) -> QRNNForConditionalGeneration:
    """Make a model whose norms are no ones and whose biases are no zeros."""
    torch.manual_seed(seed)
    model = QRNNForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                weight.add_(0.3 * torch.randn_like(weight))
            if name == "lm_head.bias":
                weight[1] += 1.0  # targets of many lengths
    return model


def save(model: QRNNForConditionalGeneration, folder: Path) -> Path:
    """Save `model` and a tokenizer of `LETTERS`, as training does."""
    model.save_pretrained(folder)
    train_character_tokenizer([LETTERS]).save_pretrained(folder)
    return folder


def saved(folder: Path, seed: int = 0, **changes: Any) -> QRNNForConditionalGeneration:
    """Make a model of a drawn config with `changes`, and save it in `folder`."""
    config = random_config(seed)
    for name, value in changes.items():
        setattr(config, name, value)
    model = random_model(config, seed)
    save(model, folder)
    return model


def network_of(folder: Path) -> Network:
    """Read the network of a folder."""
    return read_network(read_settings(folder)[0], Weights(folder))


def random_sources(seed: int, num: int = 6, longest: int = 14) -> list[list[int]]:
    """Draw ragged sources that end with the end token, one of them nothing else."""
    draw = random.Random(seed)
    lengths = [0, *(draw.randint(1, longest) for _ in range(num - 1))]
    draw.shuffle(lengths)
    return [[*(draw.randrange(4, VOCAB_SIZE) for _ in range(length)), 1] for length in lengths]


def floats_of_the_box(name: str, folder: Path) -> Path:
    """Save a model of the box, whose weights are int8, as floats, with its tokenizer."""
    box = ROOT / "models" / name
    QRNNForConditionalGeneration.from_pretrained(box).save_pretrained(folder)
    for path in box.glob("tokenizer*.json"):
        shutil.copy(path, folder)
    return folder
