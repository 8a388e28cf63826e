"""hf_qrnn.training.checkpoint: whole or not there, checked, the best never deleted."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_qrnn.training import checkpoint as module
from hf_qrnn.training.checkpoint import (
    MARKER,
    CheckpointError,
    CheckpointFolder,
    average_weights,
    find_checkpoint,
    hash_tensors,
    read_checkpoint,
    read_marker,
)

TENSORS = {
    "model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3, dtype=torch.int64)},
    "random": {"0/torch": torch.arange(5, dtype=torch.uint8)},
}


class Killed(BaseException):
    """As SIGKILL: no handler of the code under test may see it."""


def names(folder: CheckpointFolder) -> list[int]:
    return [int(path.name[5:]) for path in folder.complete()]


def save(folder: CheckpointFolder, step: int, score: float | None = None) -> Path:
    tensors = {"model": {"a": torch.full((3,), float(step))}}
    return folder.save(step, tensors, {"train": {"step": step}}, score=score)


def test_what_is_saved_is_read_and_nothing_is_pickled(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    state = {"train": {"step": 20, "best": 1 / 3}, "meters": [{"nats": 0.1 + 0.2}]}
    path = folder.save(20, TENSORS, state, score=1.5)
    assert path.name == "step-00000020"
    read = read_checkpoint(path)
    assert read.state == state
    assert read.tensors.keys() == TENSORS.keys()
    for group, content in TENSORS.items():
        assert read.tensors[group].keys() == content.keys()
        for name, tensor in content.items():
            assert torch.equal(read.tensors[group][name], tensor)
            assert read.tensors[group][name].dtype == tensor.dtype
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    assert read_marker(path)["score"] == 1.5


def test_newest_stay_and_the_best_is_never_deleted(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=2, keep_best=1)
    kept = []
    for step, score in enumerate([None, 1.0, 9.0, None, 9.0, 3.0, None, None], start=1):
        save(folder, step, score)
        kept.append(names(folder))
    assert kept == [[1], [1, 2], [2, 3], [3, 4], [3, 4, 5], [3, 5, 6], [3, 6, 7], [3, 7, 8]]
    assert not folder.is_among_best(9.0)
    assert folder.is_among_best(9.5)
    assert [path.name for path in folder.best(3)] == ["step-00000003"]
    none = CheckpointFolder(tmp_path / "none", keep_last=1, keep_best=0)
    for step in (9, 10, 100):
        save(none, step, -float(step))
    assert names(none) == [100]
    assert not none.is_among_best(0.0)


@pytest.mark.parametrize("operation", ["save_file", "_flush", "_write_json", "rename"])
@pytest.mark.parametrize("count", range(1, 8))
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, count: int
) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1, keep_best=0)
    save(folder, 1)
    owner = os if operation == "rename" else module
    real, calls = getattr(owner, operation), []

    def killing(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == count:
            if operation in ("save_file", "_write_json"):
                real(*arguments)  # half of it is on the disk
                path = next(x for x in arguments if isinstance(x, Path))
                path.write_bytes(path.read_bytes()[:-5])
            raise Killed
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, operation, killing)
        try:
            save(folder, 2)
        except Killed:
            pass
        else:
            assert 0 < len(calls) < count, "the kill never came"
    again = CheckpointFolder(tmp_path, keep_last=1, keep_best=0)
    newest = again.newest()
    assert newest is not None
    step = int(newest.name[5:])
    assert step in (1, 2)
    read = read_checkpoint(newest)
    assert read.state["train"]["step"] == step
    assert torch.equal(read.tensors["model"]["a"], torch.full((3,), float(step)))
    save(again, 3)
    assert names(again) == [3]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("operation", ["save_file", "_flush", "_write_json"])
def test_a_full_or_read_only_disk_is_one_sentence_and_keeps_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, number: int
) -> None:
    folder = CheckpointFolder(tmp_path)
    first = save(folder, 1)

    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(module, operation, failing)
        with pytest.raises(CheckpointError, match=os.strerror(number)) as caught:
            save(folder, 2)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("the checkpoint of update 2 must be written to ")
    assert message.endswith(f"the last whole one is '{first}'.")
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    read_checkpoint(first)


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="there is no earlier one"):
        save(CheckpointFolder(tmp_path / "file" / "checkpoints"), 1)


@pytest.mark.parametrize("name", ["model.safetensors", "random.safetensors", "state.json"])
@pytest.mark.parametrize("fault", ["truncated", "altered", "missing"])
def test_a_damaged_file_is_named_and_refused(tmp_path: Path, name: str, fault: str) -> None:
    path = CheckpointFolder(tmp_path).save(1, TENSORS, {})
    file = path / name
    content = file.read_bytes()
    if fault == "missing":
        file.unlink()
    else:
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes(content[:-1] if fault == "truncated" else changed)
    words = {"truncated": "bytes of", "altered": "was altered", "missing": "is missing"}
    with pytest.raises(CheckpointError, match=words[fault]) as caught:
        read_checkpoint(path)
    assert str(file) in str(caught.value)
    if name == "model.safetensors":
        with pytest.raises(CheckpointError, match=words[fault]):
            average_weights([path])


DAMAGED = [
    *("", "{", "[]", "{}", '{"step": 1, "score": null}'),
    *('{"step": 1, "score": "9", "files": {}}', '{"step": 1, "score": 9, "files": 3}'),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_marker_is_named_and_refused(tmp_path: Path, content: str) -> None:
    path = save(CheckpointFolder(tmp_path), 1)
    (path / MARKER).write_text(content)
    with pytest.raises(CheckpointError, match="must be the marker of a whole checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_marker_of_an_older_checkpoint_stops_nothing_and_is_kept(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1, keep_best=1)
    damaged = save(folder, 1, 9.0)
    save(folder, 2, 1.0)
    (damaged / MARKER).write_text(content)
    assert folder.is_among_best(2.0)
    save(folder, 3, 0.5)
    save(folder, 4)
    # Not counted among the newest or the best, and not deleted: it may have been the best.
    assert names(folder) == [1, 2, 4]
    assert [path.name for path in folder.best(9)] == ["step-00000002"]
    assert str(damaged / MARKER) in caplog.text


def test_a_copy_of_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1, keep_best=0)
    shutil.copytree(save(folder, 1), tmp_path / "step-00000001.mine")
    save(folder, 2)
    assert names(folder) == [2]
    assert find_checkpoint(str(tmp_path / "step-00000001.mine"), folder) is not None


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    path = save(CheckpointFolder(tmp_path), 1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 2}))
    marker = read_marker(path)
    marker["files"]["state.json"] = module._describe(path / "state.json")
    (path / MARKER).write_text(json.dumps(marker))
    with pytest.raises(CheckpointError, match="must be of format 1"):
        read_checkpoint(path)


def test_resume_finds_what_it_names(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints", keep_last=3)
    assert find_checkpoint("auto", folder) is None
    paths = [save(folder, step) for step in (5, 10, 15)]
    (paths[2] / MARKER).unlink()
    assert find_checkpoint("auto", folder) == paths[1]
    assert find_checkpoint("never", folder) is None
    assert find_checkpoint(str(paths[0]), folder) == paths[0]
    assert find_checkpoint(str(tmp_path / "run"), folder) == paths[1]
    assert find_checkpoint(str(folder.path), folder) == paths[1]
    for wrong in (paths[2], tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="`resume` must be auto, never, a checkpoint or"):
            find_checkpoint(str(wrong), folder)


def test_checkpoints_of_another_run_go_aside_and_are_not_lost(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep_last=3)
    assert folder.set_aside() is None
    for step in (1, 2, 3):
        save(folder, step)
    beside = folder.set_aside(after=1)
    assert beside == tmp_path / "checkpoints.replaced"
    assert names(folder) == [1]
    assert names(CheckpointFolder(beside)) == [2, 3]
    read_checkpoint(beside / "step-00000003")
    # Those moved before are not lost either.
    assert folder.set_aside() == tmp_path / "checkpoints.replaced-2"
    assert names(CheckpointFolder(beside)) == [2, 3]
    assert names(CheckpointFolder(tmp_path / "checkpoints.replaced-2")) == [1]


def test_the_average_is_the_mean_and_of_one_the_same(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=3)
    paths = [
        folder.save(step, {"model": {"a": torch.tensor([0.1 * step, -step], dtype=kind)}}, {})
        for step, kind in ((1, torch.float32), (2, torch.float32), (6, torch.float32))
    ]
    mean = average_weights(paths)["a"]
    torch.testing.assert_close(mean, torch.tensor([0.3, -3.0]))
    assert mean.dtype == torch.float32
    one = load_file(paths[0] / "model.safetensors")
    assert hash_tensors(average_weights(paths[:1])) == hash_tensors(one)
    with pytest.raises(ValueError, match="`paths` must hold at least one checkpoint"):
        average_weights([])


def test_the_hash_sees_every_bit_name_shape_and_type() -> None:
    tensor = torch.tensor([[1.0, 0.0]])
    other = {
        "same": {"a": tensor.clone()},
        "sign": {"a": torch.tensor([[1.0, -0.0]])},
        "name": {"b": tensor},
        "shape": {"a": tensor.T},
        "type": {"a": tensor.view(torch.int32)},
        "nothing": {},
    }
    hashes = {name: hash_tensors(content) for name, content in other.items()}
    assert hashes["same"] == hash_tensors({"a": tensor})
    assert len(set(hashes.values())) == len(other)


@pytest.mark.parametrize(("name", "value"), [("keep_last", 0), ("keep_best", -1)])
def test_wrong_numbers_to_keep(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least"):
        CheckpointFolder(tmp_path, **{name: value})
