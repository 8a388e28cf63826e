"""benchmarks/bench_decoding.py: end to end on tiny sizes, what its peers are, and how it fails."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import bench_decoding
import decoding_models
import goals
import pytest
import results
import torch
from bench_decoding import QUICK, WrongTokensError, draw
from bench_training import VOCABULARY, Sizes
from decoding_models import (
    ENGINES,
    Decoders,
    Ids,
    MissingError,
    Reference,
    Task,
    by_generate,
    convert,
    make_marian,
    make_model,
    step_numbers,
)
from decoding_processes import decode, launch, translate
from goals import DECODING_GOALS, Goal, check
from pronunciation_models import count_parameters
from results import Record

TINY = Sizes(layers=1, hidden=16)
TASK = Task(2, 1, 6, 7)


def quantize(words: list[str]) -> int:
    """Stand in for the command: a folder of int8 whose numbers are those of float32."""
    assert [words[0], words[2]] == ["quantize", "-o"]
    shutil.copytree(words[1], words[3])
    return 0


def native(folder: Path, engine: str) -> Any:
    """Start a process that is ready at once, whatever is asked for."""
    assert engine in ("native", "torch")
    return translate(folder, "native")


class Translator:
    """Stand in for CTranslate2's: the converted model, its ids behind names."""

    def __init__(self, path: str, compute_type: str, **threads: int) -> None:
        assert compute_type in ("float32", "int8")
        assert threads == {"inter_threads": 1, "intra_threads": 1}
        self.converter = Converter.made[path]
        self.model = self.converter.load_model()

    def translate_batch(self, source: list[list[str]], **options: Any) -> list[Any]:
        ids = self.converter.load_tokenizer().get_vocab()
        names = {new: name for name, new in ids.items()}
        rows = [[ids[token] for token in row] for row in source]
        length = options["max_decoding_length"]
        assert options["min_decoding_length"] == length
        task = Task(len(rows), options["beam_size"], len(rows[0]), length)
        found = by_generate(self.model, rows, task)
        return [SimpleNamespace(hypotheses=[[names[x] for x in row]]) for row in found]


class Converter:
    """Stand in for CTranslate2's."""

    made: dict[str, Any] = {}

    def __init__(self, path: str) -> None:
        self.made[path] = self

    def convert(self, path: str, force: bool) -> None:
        assert (Path(path) / "config.json").is_file()
        (Path(path) / "model.bin").write_text("")


@pytest.fixture(scope="module")
def ctranslate2() -> Any:
    """Put a package in the place of CTranslate2, whether that is installed or not."""
    package, converters = ModuleType("ctranslate2"), ModuleType("ctranslate2.converters")
    package.Translator, converters.TransformersConverter = Translator, Converter
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ctranslate2", package)
        patch.setitem(sys.modules, "ctranslate2.converters", converters)
        yield package


@pytest.fixture(scope="module")
def measured(ctranslate2: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """All records of a run in tiny sizes, with everybody there."""
    path = tmp_path_factory.mktemp("bench") / "out.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding_models, "hf_qrnn_command", quantize)
        patch.setattr(bench_decoding, "translate", native)
        assert bench_decoding.main(["--quick", "--seconds", "0", "--output", str(path)]) == 0
    return results.read(path)


# ------------------------------------------------------------------ everything that is measured


def test_everybody_is_measured_at_every_task(measured: list[Record]) -> None:
    assert not [x for x in measured if "skipped" in x]
    assert {x["by"] for x in measured if x["bench"] == "process"} == {*ENGINES, "generate()"}
    assert [x["by"] for x in measured if x["bench"] == "steps"] == list(ENGINES)
    decoding = [x for x in measured if x["bench"] == "decoding"]
    tasks = [(row.what, row.task) for row in bench_decoding.rows(QUICK) for _ in row.who]
    found = [(x["what"], Task(x["batch"], x["beams"], x["source"], x["length"])) for x in decoding]
    assert found == tasks
    who = [who for row in bench_decoding.rows(QUICK) for who in row.who]
    assert [(x["model"], x["by"]) for x in decoding] == who


def test_figures_of_a_row_are_those_of_one_timing(measured: list[Record]) -> None:
    for x in (x for x in measured if x["bench"] == "decoding"):
        assert x["ms"] == pytest.approx(x["ms_per_step"] * x["length"], rel=0.01)
        rate = 1e3 * x["batch"] * x["length"] / x["ms"]
        assert x["characters_per_second"] == pytest.approx(rate, rel=0.02)
    one = [x for x in measured if x["bench"] == "decoding" and x["model"] == "modern"][:9]
    engine, reference = one[0], one[4]
    assert (engine["by"], reference["by"]) == ("engine float32", "reference")
    # Of one round: the ratio is that of the two times, and the other way round.
    assert engine["of_reference"] == pytest.approx(reference["ms"] / engine["ms"], rel=0.02)
    assert reference["of_engine_float32"] == pytest.approx(engine["ms"] / reference["ms"], abs=2e-3)
    steps = next(x for x in measured if x["bench"] == "steps")
    ratio = steps["ms_per_step"] / steps["reading_ms_per_step"]
    assert steps["over"] == pytest.approx(ratio, rel=0.5)


def test_tables_have_all_of_it(measured: list[Record]) -> None:
    text = results.markdown(measured)
    for words in ("| modern | 3 x (6 + 5) | CTranslate2 int8 |", "| paper | engine int8 |"):
        assert words in text
    assert "| paper | 2 x (5 + 4), 3 beams | generate() |" in text
    assert "| modern | engine bfloat16 | 5 | 50 |" in text


def test_a_checked_run_of_tiny_sizes_proves_nothing(
    measured: list[Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("\n".join(map(results.json.dumps, measured)))
    assert bench_decoding.main(["--table", str(path), "--check"]) == 1
    assert "nothing is proven" in capsys.readouterr().out


# ------------------------------------------------------------------ every goal can be missed

SIZES = ("layers", "hidden", "batch", "length", "beams", "vnni", "threads")


def full_size(goal: Goal, measured: list[Record]) -> Record:
    """Return a record of the tiny run that `goal` would be about if it were in full size."""
    where = {name: value for name, value in goal.where.items() if name not in SIZES}
    many = goal.where.get("beams", 1) > 1
    of_it = [
        x
        for x in measured
        if where.items() <= x.items() and goal.metric in x and (x.get("beams", 1) > 1) == many
    ]
    assert of_it, f"nothing is measured for {goal.name}"
    cell = {} if goal.cells is None else dict(zip(("batch", "length"), goal.cells[0], strict=True))
    return {**of_it[0], **goal.where, **cell}


@pytest.mark.parametrize("goal", DECODING_GOALS, ids=lambda goal: goal.name)
def test_every_goal_is_measured_met_and_missed(
    goal: Goal, measured: list[Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, misses = full_size(goal, measured), tmp_path / "misses.md"
    misses.write_text("")
    better, worse = (0.99, 1.01) if goal.at_most else (1.01, 0.99)
    assert isinstance(goal.bound, float)
    good, bad = ({**record, goal.metric: goal.bound * x} for x in (better, worse))
    assert check([good], misses, (goal,)) == 0
    assert check([bad], misses, (goal,)) == 1
    name = goal.label(bad)
    assert f"MISSED {name}: " in capsys.readouterr().out
    misses.write_text(f"- `{name}`\n\nCause: none.\n")
    assert check([bad], misses, (goal,)) == 0


def test_goals_are_about_the_tasks_of_the_full_plan() -> None:
    plan = bench_decoding.Plan()
    tasks = {
        (kind, by, row.task.rows, row.task.target, row.task.beams)
        for row in bench_decoding.rows(plan)
        for kind, by in row.who
    }
    for goal in (x for x in DECODING_GOALS if x.where["bench"] == "decoding"):
        where = goal.where
        sizes = plan.sizes[where["model"]]
        assert (sizes.layers, sizes.hidden) == (where["layers"], where["hidden"])
        batch, length = goal.cells[0] if goal.cells else (where["batch"], where["length"])
        assert (where["model"], where["by"], batch, length, where["beams"]) in tasks, goal.name


# ------------------------------------------------------------------ tokens are compared


class Liar(Decoders):
    """Somebody who finds another last token than the others, or one too few."""

    cuts = False

    def get(self, kind: str, by: str) -> decoding_models.Decode:
        real = super().get(kind, by)
        if by != self.by:
            return real

        def lie(sources: Ids, task: Task) -> Ids:
            rows = real(sources, task)
            last = [] if self.cuts else [5 if rows[0][-1] != 5 else 6]
            return [[*rows[0][:-1], *last], *rows[1:]]

        return lie

    by = "engine float32"


@pytest.mark.parametrize(
    "by", ["engine float32", "engine bfloat16", "generate()", "CTranslate2 float32"]
)
def test_another_token_ends_the_row(by: str, tmp_path: Path, ctranslate2: Any) -> None:
    decoders = Liar(tmp_path, dict(QUICK.sizes), QUICK.depths)
    decoders.by = by
    row = bench_decoding.Row("a row", TASK, (("modern", by),))
    with pytest.raises(WrongTokensError, match=rf"modern {by[:6]}.*92.9% of the tokens"):
        list(bench_decoding.measure_row(row, decoders, QUICK, 0.0))


@pytest.mark.parametrize("by", ["engine int8", "nn.LSTM", "reference"])
def test_another_length_ends_the_row_whoever_it_is(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_models, "hf_qrnn_command", quantize)
    decoders = Liar(tmp_path, dict(QUICK.sizes), QUICK.depths)
    decoders.by, decoders.cuts = by, True
    row = bench_decoding.Row("a row", TASK, (("modern", by),))
    with pytest.raises(WrongTokensError, match=r"2 targets of 7 tokens .* 2 of \[6, 7\]"):
        list(bench_decoding.measure_row(row, decoders, QUICK, 0.0))


def test_int8_tells_how_far_it_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_models, "hf_qrnn_command", quantize)
    decoders = Liar(tmp_path, dict(QUICK.sizes), QUICK.depths)
    decoders.by = "engine int8"
    row = bench_decoding.Row("a row", TASK, (("modern", "engine int8"),))
    (record,) = bench_decoding.measure_row(row, decoders, QUICK, 0.0)
    assert record["agreement"] == round(13 / 14, 4)


def test_wrong_tokens_end_the_program_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = iter(["a", "b", "c", "d"])
    process = SimpleNamespace(seconds=1.0, peak_mb=1.0)
    monkeypatch.setattr(
        bench_decoding, "translate", lambda *_: SimpleNamespace(**vars(process), output=next(said))
    )
    assert bench_decoding.main(["--quick", "--output", str(tmp_path / "out.jsonl")]) == 1
    assert "error: a process: the engine must translate as generate()" in capsys.readouterr().err


# ------------------------------------------------------------------ who is compared


def test_the_reference_calls_every_layer_at_every_step_and_shares_nothing() -> None:
    model = make_model("modern", Sizes(layers=2, hidden=16), (2, 1))
    reference = Reference(model.config).eval()
    reference.load_state_dict(model.state_dict())
    task = Task(2, 3, 6, 7)
    sources = draw(task)
    states: list[int] = []

    def look(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        given = (*arguments, *named.values())
        states.extend(x.last_hidden_state.shape[0] for x in given if hasattr(x, "final_states"))

    reference.model.decoder.register_forward_pre_hook(look, with_kwargs=True)
    assert by_generate(reference, sources, task) == by_generate(model, sources, task)
    # A layer and what is in it: two calls of each of two layers at each of seven steps.
    assert reference.num_heard == 2 * 2 * 7
    assert states == [2 * 3] * 7


def test_random_targets_are_of_many_tokens_that_are_far_apart() -> None:
    sizes, task = Sizes(layers=2, hidden=64), Task(4, 1, 20, 40)
    ours = [make_model(kind, sizes, (2, 1)) for kind in decoding_models.KINDS]
    for model in (*ours, make_marian(sizes, 300_000)):
        found = by_generate(model, draw(task), task)
        assert len({token for row in found for token in row}) > 5
        ids = torch.tensor(draw(task))
        with torch.no_grad():
            logits = model(input_ids=ids, decoder_input_ids=ids).logits[..., 4:]
        assert 1.5 < logits.std() < 6


@pytest.mark.parametrize("kind", ["paper", "modern", "fast"])
def test_no_target_ends_by_itself(kind: str) -> None:
    model = make_model(kind, TINY, (2, 1))
    assert model.config.encoder_layers == (2 if kind == "fast" else 1)
    # What is likeliest without that would end at once.
    with torch.no_grad():
        model.lm_head.weight[1] = 0.0
    assert {len(row) for row in by_generate(model, draw(TASK), TASK)} == {TASK.target}


def test_a_step_reads_the_decoder_but_what_is_read_once_a_source() -> None:
    paper = step_numbers(make_model("paper", TINY, (2, 1)))
    out = 16 * VOCABULARY + VOCABULARY
    assert paper == 48 * 32 + 48 + 2 * 16 * 16 + out  # gates over two steps, W_k, W_c
    modern = step_numbers(make_model("modern", TINY, (2, 1)))
    norms = 3 * 16  # around the layer, of attention, behind all
    assert modern == 48 * 32 + 48 + 2 * 16 * 16 + norms + out  # gates, query, out


def test_the_transformer_has_as_many_trained_parameters() -> None:
    sizes = Sizes(layers=2, hidden=96)
    number = count_parameters(make_model("modern", sizes, (6, 2)))
    assert abs(count_parameters(make_marian(sizes, number)) / number - 1) < 0.01


def test_a_converted_transformer_finds_the_same(tmp_path: Path, ctranslate2: Any) -> None:
    model = make_marian(TINY, 30_000)
    convert(model, tmp_path)
    decoder = Translator(str(tmp_path), "float32", inter_threads=1, intra_threads=1)
    assert decoder.model.config.pad_token_id == VOCABULARY - 1
    sources = draw(TASK)
    found = decoding_models.by_ctranslate2(decoder, sources, TASK)
    assert found == by_generate(model, sources, TASK)


def test_who_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    decoders = Decoders(tmp_path, dict(QUICK.sizes), QUICK.depths)
    row = bench_decoding.Row("a row", TASK, (("modern", "CTranslate2 int8"), ("modern", "nn.LSTM")))
    missing, lstm = bench_decoding.measure_row(row, decoders, QUICK, 0.0)
    assert missing["skipped"] == "not installed"
    assert "skipped decoding CTranslate2 int8: not installed" in results.sentence(missing)
    assert lstm["by"] == "nn.LSTM"


def test_a_version_without_int8_is_said_and_a_fault_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "invalid choice: 'quantize' (choose from ...)"

    def refuse(words: list[str]) -> int:
        print(f"error: argument COMMAND: {sentence}", file=sys.stderr)
        return 2

    monkeypatch.setattr(decoding_models, "hf_qrnn_command", refuse)
    decoders = Decoders(tmp_path, dict(QUICK.sizes), QUICK.depths)
    for _ in range(2):
        with pytest.raises(MissingError, match="this version has no `hf-qrnn quantize`"):
            decoders.folder("modern", "int8")
    sentence = "there is no space left"
    with pytest.raises(RuntimeError, match="no space left"):
        decoders.folder("paper", "int8")


# ------------------------------------------------------------------ processes


def test_the_memory_of_a_process_is_its_own() -> None:
    held = torch.ones(50_000_000)  # 200 MB of the parent's
    less = launch(["-c", "print('x')"])
    more = launch(["-c", "x = b'1' * 50_000_000; print('x')"])
    assert held.sum() > 0
    assert less.output == "x\n"
    assert 5 < less.peak_mb < 60
    assert more.peak_mb - less.peak_mb == pytest.approx(50, abs=5)
    with pytest.raises(RuntimeError, match="ended with 3: why"):
        launch(["-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"])


def test_a_long_target_has_its_length(tmp_path: Path) -> None:
    decoders = Decoders(tmp_path, dict(QUICK.sizes), QUICK.depths)
    folder = decoders.folder("modern", "bfloat16")
    assert decode(folder, 5, 300).peak_mb < 200
    # Without the bias a target may end before.
    model = make_model("modern", TINY, (2, 1))
    with torch.no_grad():
        model.lm_head.bias[1] = 100.0
    decoding_models.save(model, tmp_path / "ends", "float32")
    with pytest.raises(RuntimeError, match="must have 300 characters, but has 0"):
        decode(tmp_path / "ends", 5, 300)


def test_memory_that_grows_is_a_missed_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grows(folder: Path, source: int, target: int) -> Any:
        return SimpleNamespace(seconds=1.0, peak_mb=50 + target / 1e4)

    monkeypatch.setattr(bench_decoding, "decode", grows)
    plan = replace(QUICK, memory=(1_000, 100_000))
    decoders = Decoders(tmp_path, dict(plan.sizes), plan.depths)
    (record,) = bench_decoding.measure_memory(decoders, plan)
    assert record["growth"] == round(60 / 50.1, 4)
    (goal,) = (x for x in goals.DECODING_GOALS if x.metric == "growth")
    assert record["growth"] > goal.bound
