"""Group d: training runs that anyone can judge: characters a second, loss, and BLEU at the end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from controls import LSTMTranslator

from hf_qrnn.data.batching import BucketBatchSampler, encode_pairs, make_loader
from hf_qrnn.data.reading import TextPair, read_lines
from hf_qrnn.data.tokenization import train_character_tokenizer

from .operations import synchronize
from .plan import ROOT, Record, Setting

SPLITS = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
FOLDER = "multi30k"
EVERY = 10.0  # seconds between two records of a run
# Large batches: launches bind a small model on a GPU, so an update of many rows costs no more.
LARGE = [
    "--max_tokens", "8192", "--learning_rate", "2e-3", "--warmup_steps", "300",
    "--dropout", "0.2", "--mixed_precision", "bf16",
]  # fmt: skip
TINY = [
    "--cpu", "--max_steps", "4", "--max_tokens", "256", "--num_threads", "1", "--log_every", "2",
    "--hidden_size", "8", "--embedding_size", "8", "--encoder_layers", "1", "--decoder_layers", "1",
    "--encoder_kernel_sizes", "2", "--decoder_kernel_sizes", "2", "--num_attention_heads", "1",
    "--eval_sentences", "2", "--min_count", "1",
]  # fmt: skip


class Data:
    """The sentence pairs: those that were carried, else generated ones."""

    def __init__(self, setting: Setting) -> None:
        folder = setting.carried / FOLDER
        self.paths = {
            (split, side): folder / f"{name}.{side}.xz"
            for split, name in SPLITS.items()
            for side in ("de", "en")
        }
        missing = [path.name for path in self.paths.values() if not path.is_file()]
        self.name = "multi30k" if not missing else "generated"
        self.about = "" if not missing else f"generated text: {folder} has no {', '.join(missing)}"
        if missing:
            self._generate(setting)

    def _generate(self, setting: Setting) -> None:
        """Write sentences of the demo's grammar."""
        sys.path.append(str(ROOT))
        from demo.corpus.corpus import make_corpus

        few, folder = setting.dry, setting.work / "generated"
        numbers = (60, 8, 2) if few else (30_000, 1000, 500)
        names = ("num_train", "num_test", "num_held_out")
        corpus = make_corpus(**dict(zip(names, numbers, strict=True)))
        folder.mkdir(parents=True, exist_ok=True)
        splits = {"train": corpus.train, "valid": corpus.held_out[:200], "test": corpus.test}
        for split, pairs in splits.items():
            for side, attribute in (("de", "source"), ("en", "target")):
                path = folder / f"{split}.{side}"
                lines = "".join(f"{getattr(pair, attribute)}\n" for pair in pairs)
                path.write_text(lines, encoding="utf-8")
                self.paths[split, side] = path

    def flags(self) -> list[str]:
        """Write the flags of the training script."""
        found = []
        for (split, side), path in self.paths.items():
            found += [f"--{split}_{'source' if side == 'de' else 'target'}", str(path)]
        return found

    def pairs(self) -> list[TextPair]:
        """Read the training pairs."""
        sides = (read_lines(self.paths["train", side]) for side in ("de", "en"))
        return [TextPair(*pair) for pair in zip(*sides, strict=True)]


def modern(setting: Setting) -> Iterator[Record]:
    """Train the modern preset at large batches in bfloat16, and translate the test set greedily."""
    yield from _run(setting, "modern", LARGE, minutes=1.2)


def graphs(setting: Setting) -> Iterator[Record]:
    """Train it once more with whole updates as CUDA graphs, whose shapes must be few."""
    few = ["--pad_to_multiple_of", "8"]
    # A flag of a GPU's, which the CPU of a dry run refuses.
    own = few if setting.dry else ["--cuda_graphs", *few]
    yield from _run(setting, "modern", [*LARGE, *own], minutes=0.3, name="modern_graphs")


def paper(setting: Setting) -> Iterator[Record]:
    """Train the paper's preset beside it, for the speed and the loss of the same seconds."""
    yield from _run(setting, "paper", ["--mixed_precision", "bf16"], minutes=0.3)


def _run(
    setting: Setting, preset: str, options: list[str], *, minutes: float, name: str = ""
) -> Iterator[Record]:
    """Run the training script; a record every ten seconds, so that nothing is lost at a limit."""
    data, folder = Data(setting), setting.work / (name or preset)
    command = [
        sys.executable, str(ROOT / "scripts/train_translation.py"),
        "--config", str(ROOT / f"scripts/configs/translation_{preset}.yaml"), *data.flags(),
        "--output_dir", str(folder), "--overwrite_output_dir", "--save_every", "0",
        "--eval_every", str(10**9), "--num_beams", "1", "--eval_batch_size", "512",
        "--max_steps", str(10**6), "--max_minutes", str(minutes), *options,
        *(TINY if setting.dry else []),
    ]  # fmt: skip
    about: Record = {
        "status": "measured",
        "bench": "run",
        "preset": name or preset,
        "data": data.name,
        "device": setting.device,
    }
    if data.about:
        yield {**about, "about": data.about}
    began, seen = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(0.1)
        if time.monotonic() - began >= EVERY * (seen + 1):
            seen += 1
            yield {**about, **_progress(folder)}
    if process.returncode:
        reason = f"train_translation.py ended with {process.returncode}; the log says why"
        yield {**about, "status": "failed", "reason": reason}
        return
    yield {**about, **_progress(folder)}
    test = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    ended = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    took = ended["seconds"] / 60
    yield {
        **about,
        "bench": "trained",
        "minutes": round(took, 3),
        "updates": ended["step"],
        "bleu": test["bleu"],
        "bleu_signature": test["bleu_signature"],
        "chrf": test["chrf"],
        "wall_seconds": round(time.monotonic() - began, 1),
        "say": f"{preset}: BLEU {test['bleu']:.1f} of {data.name} after {60 * took:.0f} s",
    }


def _progress(folder: Path) -> Record:
    """Return the newest line of a run's log, of training and of validation."""
    path, found = folder / "metrics.jsonl", {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        if line.endswith("}"):
            record = json.loads(line)
            found[record["kind"]] = record
    names = ("seconds", "loss", "chars_per_second", "peak_memory_mb")
    record = {name: found["train"][name] for name in names} if "train" in found else {}
    if record:
        record["update"] = found["train"]["step"]
    if "bleu" in found.get("valid", {}):
        record["valid_bleu"] = found["valid"]["bleu"]
    return record


# ------------------------------------------------------------------ the control


def lstm(setting: Setting) -> Iterator[Record]:
    """Train the paper's model with LSTM layers on the same data: characters a second and loss."""
    data = Data(setting)
    pairs = data.pairs()
    tokenizer = train_character_tokenizer(text for x in pairs for text in (x.source, x.target))
    encoded = encode_pairs(tokenizer, pairs)
    size = 256 if setting.dry else 1600
    sampler = BucketBatchSampler(encoded, max_tokens=size, pad_to_multiple_of=4)
    loader = make_loader(encoded, sampler, pad_token_id=0, pad_to_multiple_of=4)
    hidden, layers, limit = (8, 1, 0.5) if setting.dry else (320, 4, 25.0)
    model = LSTMTranslator(len(tokenizer), hidden, layers).to(setting.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    about: Record = {
        "status": "measured", "bench": "run", "preset": "lstm", "data": data.name,
        "device": setting.device,
    }  # fmt: skip
    began = last = time.perf_counter()
    characters = step = 0
    loss: Any = None
    while time.perf_counter() - began < limit:
        for batch in loader:
            inputs = {k: x.to(setting.device) for k, x in batch.inputs.items()}
            with torch.autocast(setting.device, torch.bfloat16):
                loss = model(inputs["input_ids"], inputs["labels"]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            characters += batch.num_source_tokens + batch.num_target_tokens
            now = time.perf_counter()
            if now - began >= limit or now - last >= EVERY:
                synchronize(setting)
                last = time.perf_counter()
                rate = characters / (last - began)
                found = {
                    "update": step,
                    "seconds": round(last - began, 2),
                    "loss": float(loss.detach()),
                }
                yield {**about, **found, "chars_per_second": round(rate)}
            if now - began >= limit:
                break
