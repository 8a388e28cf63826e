"""hf_qrnn.training.processes: the precision that is fast on a machine."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from training_script import flags, load_script

from hf_qrnn.training import processes
from hf_qrnn.training.processes import advise_processes, choose_precision, processor_flags


@pytest.mark.parametrize(
    ("can", "fast"),
    [({"avx2"}, "no"), ({"avx2", "avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), (set(), "no")],
)
def test_auto_is_bf16_where_the_processor_multiplies_it(
    can: set[str], fast: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "processor_flags", lambda: can)
    assert choose_precision("auto", cpu=True) == fast
    for wanted in ("no", "bf16"):
        assert choose_precision(wanted, cpu=True) == wanted


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), "no"), ((8, 0), "bf16")])
def test_auto_asks_the_gpu_that_is_used(
    capability: tuple[int, int], fast: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(processes, "processor_flags", set)
    assert choose_precision("auto", cpu=False) == fast
    assert choose_precision("auto", cpu=True) == "no"


def test_the_flags_of_this_processor_are_read() -> None:
    assert "sse2" in processor_flags() or not Path("/proc/cpuinfo").exists()


def test_a_run_records_what_auto_chose_and_goes_on_with_it_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script()
    AcceleratorState._reset_state(True)
    monkeypatch.setattr(processes, "processor_flags", lambda: {"amx_bf16"})
    argv = flags(tmp_path, max_steps=2, mixed_precision="auto", resume="auto")
    assert script.main(argv) == 0
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert "mixed precision bf16" in run["hardware"]["processes"]
    monkeypatch.setattr(processes, "processor_flags", set)
    AcceleratorState._reset_state(True)
    assert script.main(argv) == 2
    assert "`--mixed_precision` must be 'bf16', as in" in capsys.readouterr().err
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize(
    ("kind", "count", "threads", "said"),
    [("cpu", 1, 4, True), ("cpu", 2, 4, False), ("cpu", 1, 1, False), ("cuda", 1, 4, False)],
)
def test_threads_that_processes_would_use_better_are_spoken_of(
    kind: str, count: int, threads: int, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    accelerator = SimpleNamespace(device=torch.device(kind), num_processes=count)
    advice = advise_processes(accelerator)
    assert (advice is not None) == said
    if advice is not None:
        assert "torchrun --standalone --nproc_per_node 4 " in advice
        assert "--cpu --num_threads 1" in advice
