"""Small runs of the language model's script: data, command lines, and how they ended."""

import json
import random
from pathlib import Path


def flags(folder: Path, *switches: str, **changes: object) -> list[str]:
    """Write a small run's texts to `folder`, and return its command line."""
    draw = random.Random(0)
    for name, number in (("train", 60), ("valid", 8), ("test", 8)):
        if not (folder / name).exists():
            words = [draw.choices(["the", "cat", "dog", "sees"], k=4) for _ in range(number)]
            (folder / name).write_text("".join(" ".join(line) + "\n" for line in words))
    options = {
        **{f"{name}_file": folder / name for name in ("train", "valid")},
        **{"hidden_size": 8, "embedding_size": 8, "decoder_layers": 2, "dropout": 0.2},
        **{"output_dir": folder / "out", "max_steps": 12, "batch_size": 4, "num_threads": 1},
        **{"sequence_length": 40, "save_every": 2, "eval_every": 4, "log_every": 1},
        **{"learning_rate": 0.01, **changes},
    }
    flags = [text for k, v in options.items() for text in (f"--{k}", str(v))]
    return ["--cpu", *flags, *switches]


def ended(folder: Path) -> dict[str, object]:
    """Read how a run ended."""
    found: dict[str, object] = json.loads((folder / "training.json").read_text())
    return found
