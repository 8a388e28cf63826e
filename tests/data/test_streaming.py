"""hf_qrnn.data.streaming: every pair once, exact resumes, ids that are encoded once."""

import json
from pathlib import Path
from typing import Any

import pytest
from training_script import load_script

from hf_qrnn.data import streaming
from hf_qrnn.data.batching import encode_pairs
from hf_qrnn.data.reading import DataOptions, PairStream, TextPair, load_translation_data
from hf_qrnn.data.streaming import StreamBatches, encode_stored
from hf_qrnn.data.tokenization import train_character_tokenizer

PAIRS = [TextPair("ab" * (1 + i % 9) + chr(97 + i % 20), "c" * (1 + i % 7)) for i in range(75)]
TOKENIZER = train_character_tokenizer(["abcdefghijklmnopqrstuvwxyz"])


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The `datasets` library with its cache in a folder of the test."""
    import datasets as library

    patch = pytest.MonkeyPatch()
    patch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    library.disable_progress_bars()
    yield library
    library.enable_progress_bars()
    patch.undo()


def stream(**changes: Any) -> StreamBatches:
    return StreamBatches(PAIRS, TOKENIZER, **{"max_tokens": 60, "pool_size": 30, **changes})


def content(batch: Any) -> list[list[int]]:
    """The rows of a batch as ids, source and target, without padding."""
    inputs = batch.inputs
    sources = [
        row[mask.bool()].tolist()
        for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    targets = [row[row != -100].tolist() for row in inputs["labels"]]
    return [source + [-1] + target for source, target in zip(sources, targets, strict=True)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_pair_comes_once_an_epoch_and_processes_keep_step(world_size: int) -> None:
    encoded = encode_pairs(TOKENIZER, PAIRS)
    expected = sorted(pair.source_ids + [-1] + pair.target_ids for pair in encoded)
    for epoch in (0, 1):
        ranks = []
        for rank in range(world_size):
            batches = stream(world_size=world_size, rank=rank, seed=5)
            batches.set_epoch(epoch)
            ranks.append(list(batches))
        assert len({len(batches) for batches in ranks}) == 1
        real = [batch for batches in ranks for batch in batches if not batch.is_filler]
        assert sorted(row for batch in real for row in content(batch)) == expected
        assert all(batch.inputs["input_ids"].numel() <= 60 for batch in real)


def test_order_depends_on_epoch_and_seed_and_resumes_anywhere() -> None:
    def rows(epoch: int, start: int = 0, seed: int = 0) -> list[list[list[int]]]:
        batches = stream(seed=seed)
        batches.set_epoch(epoch, start=start)
        return [content(batch) for batch in batches]

    whole = rows(1)
    assert rows(1) == whole
    assert rows(0) != whole
    assert rows(1, seed=1) != whole
    for start in range(len(whole) + 2):
        assert rows(1, start) == whole[start:]


def test_a_stream_has_no_length() -> None:
    with pytest.raises(TypeError, match="`max_steps` must be at least 1 with `streaming`"):
        len(stream())


def write_folder(folder: Path, kind: str, datasets: Any) -> None:
    rows = [{"de": pair.source, "en": pair.target} for pair in PAIRS]
    rows.insert(3, {"de": "  ", "en": "dropped"})
    rows.insert(9, {"de": "x" * 50, "en": "dropped"})
    for name, part in (("train", rows), ("validation", rows[:2])):
        if kind == "parquet":
            datasets.Dataset.from_list(part).to_parquet(folder / f"{name}.parquet")
        else:
            text = "".join(json.dumps(row) + "\n" for row in part)
            (folder / f"{name}.jsonl").write_text(text)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_data_set_streams_the_pairs_it_would_load(
    tmp_path: Path, datasets: Any, kind: str
) -> None:
    write_folder(tmp_path, kind, datasets)
    given: dict[str, Any] = {
        "dataset_name": str(tmp_path),
        "source_lang": "de",
        "target_lang": "en",
    }
    loaded = load_translation_data(DataOptions(**given, max_chars=40))
    streamed = load_translation_data(DataOptions(**given, max_chars=40, streaming=True))
    assert loaded.train == PAIRS
    assert loaded.stream is None
    assert streamed.stream is not None
    for _ in range(2):
        assert list(streamed.stream) == PAIRS
    assert streamed.train == PAIRS
    assert streamed.valid == loaded.valid
    limited = PairStream(DataOptions(**given, max_chars=40, limit=5))
    assert list(limited) == PAIRS[:5]


def test_only_a_named_data_set_streams() -> None:
    with pytest.raises(ValueError, match="`dataset_name` must be given for `streaming`"):
        load_translation_data(DataOptions(streaming=True, train_source="a", train_target="b"))


@pytest.mark.parametrize("num_proc", [1, 2])
def test_stored_ids_are_those_of_memory_and_are_made_once(
    tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch, num_proc: int
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    folder = tmp_path / "hf_qrnn"
    stored = encode_stored(TOKENIZER, PAIRS, num_proc=num_proc)
    expected = encode_pairs(TOKENIZER, PAIRS)
    assert len(stored) == len(expected)
    assert list(stored) == expected
    assert [stored[index] for index in (0, 40, 74)] == [expected[index] for index in (0, 40, 74)]
    assert stored[3:6] == expected[3:6]
    files = sorted(folder.iterdir())
    assert files

    def never(*_: object) -> None:
        raise AssertionError("encoded again")

    with monkeypatch.context() as patch:
        patch.setattr(streaming, "encode_pairs", never)
        assert list(encode_stored(TOKENIZER, PAIRS, num_proc=num_proc)) == expected
    assert sorted(folder.iterdir()) == files
    other = train_character_tokenizer(["abcdefghijklmnopqrstuvwxyz!"])
    assert list(encode_stored(other, PAIRS, num_proc=num_proc)) == encode_pairs(other, PAIRS)
    assert len(list(folder.iterdir())) == 2 * len(files)


@pytest.mark.parametrize("flags", [["--streaming"], ["--num_proc", "2"]], ids=lambda x: x[0])
def test_the_script_streams_and_stores_and_resumes(
    tmp_path: Path, datasets: Any, flags: list[str]
) -> None:
    (tmp_path / "data").mkdir()
    write_folder(tmp_path / "data", "jsonl", datasets)
    script = load_script()
    hashes = []
    for out, steps in (("whole", "6"), ("cut", "4"), ("cut", "6")):
        command = ["--cpu", *flags, "--dataset_name", str(tmp_path / "data"), "--max_chars", "40"]
        command += ["--source_lang", "de", "--target_lang", "en", "--output_dir"]
        command += [str(tmp_path / out), "--max_steps", steps, "--schedule", "constant"]
        command += ["--hidden_size", "8", "--embedding_size", "8", "--encoder_layers", "1"]
        command += ["--decoder_layers", "1", "--max_tokens", "60", "--eval_sentences", "0"]
        assert script.main([*command, "--resume", "auto"]) == 0
        ended = json.loads((tmp_path / out / "training.json").read_text())
        hashes.append(ended["weights_sha256"])
    assert hashes[0] == hashes[2] != hashes[1]


def test_wrong_numbers_of_processes() -> None:
    with pytest.raises(ValueError, match="`num_proc` must be at least 1, but is 0"):
        encode_stored(TOKENIZER, PAIRS, num_proc=0)
    with pytest.raises(ValueError, match="`num_proc` must be at least 0, but is -1"):
        load_translation_data(DataOptions(train_source="a", train_target="b", num_proc=-1))
