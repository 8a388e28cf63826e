"""hf_qrnn.hub.files: a fixed list of names goes to the Hub, and nothing outside the folder."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hub_fixtures import CLIENT_WARNING, REPO, save_model, save_run, travellers
from hub_stand_in import HubStandIn
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_qrnn.cli.main import main
from hf_qrnn.hub.files import CUSTOM_GENERATE, kind_of, shared_files
from hf_qrnn.hub.push import push
from hf_qrnn.hub.verify import VERIFICATION_FILE

MODEL = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", *travellers(),
}  # fmt: skip
RECORDS = {"README.md", "run.json", "metrics.jsonl", "learning_curve.png"}
SECRET = "what lies outside"

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    save_run(folder)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "metrics.jsonl").write_text(json.dumps({"kind": SECRET}) + "\n")
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in shared_files(folder)}


# ------------------------------------------------------------------ the list


def test_only_names_of_the_list_are_sent(run: Path, hub: HubStandIn) -> None:
    for name in (
        "evil_qrnn.py", "pipeline_qrnn.py", "secret.model", "secret.spm", "tokenizer.model",
        "vocab.json", "merges.txt", "model-00001-of-00002.safetensors", "notes.py", "old.json",
        "model.safetensors.index.json", "adapter_model.safetensors", "training.json",
    ):  # fmt: skip
        (run / name).write_text("{}")
    push(run, REPO)
    added = {VERIFICATION_FILE, CUSTOM_GENERATE, ".gitattributes"}
    assert set(hub.files(REPO)) == MODEL | RECORDS | added


def test_vocabularies_are_sent_where_the_tokenizer_is_made_of_them(run: Path) -> None:
    (run / "tokenizer.json").unlink()
    own = {"vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "source.spm"}
    for name in own | {"secret.model", "secret.spm", "vocab.bin"}:
        (run / name).write_text("{}")
    assert names(run) == MODEL - {"tokenizer.json"} | RECORDS | own


def test_a_tokenizer_made_of_vocabularies_loads_from_the_hub(run: Path, hub: HubStandIn) -> None:
    backend = Tokenizer(models.BPE({"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.model.save(str(run))
    (run / "tokenizer.json").unlink()
    end = "<|endoftext|>"
    tokens = {"tokenizer_class": "GPT2Tokenizer", "eos_token": end, "bos_token": end}
    tokens |= {"unk_token": end, "pad_token": end}
    (run / "tokenizer_config.json").write_text(json.dumps(tokens))
    push(run, REPO)
    assert {"vocab.json", "merges.txt"} <= set(hub.files(REPO))
    tokenizer = AutoTokenizer.from_pretrained(REPO, trust_remote_code=True)
    assert tokenizer("abba")["input_ids"] == [3, 2, 1]


def test_the_code_is_what_the_folders_own_code_needs(run: Path) -> None:
    """A folder of another release has other modules."""
    source = (run / "modeling_qrnn.py").read_text(encoding="utf-8")
    source = source.replace("from .losses_qrnn import", "from .older_qrnn import")
    (run / "modeling_qrnn.py").write_text(source, encoding="utf-8")
    (run / "losses_qrnn.py").rename(run / "older_qrnn.py")
    (run / "losses_qrnn.py").write_text("stale = True\n")
    assert names(run) == MODEL - {"losses_qrnn.py"} | RECORDS | {"older_qrnn.py"}


def test_the_code_of_a_saved_pipeline_goes_along(run: Path) -> None:
    (run / "pipeline_qrnn.py").write_text("class QRNNTranslationPipeline: pass\n")
    config = json.loads((run / "config.json").read_text())
    config["custom_pipelines"] = {"qrnn-translation": {"impl": "pipeline_qrnn.X"}}
    (run / "config.json").write_text(json.dumps(config))
    assert names(run) == MODEL | RECORDS | {"pipeline_qrnn.py"}


def test_code_that_imports_a_foreign_module_is_refused(run: Path) -> None:
    (run / "private.py").write_text("x = 1\n")
    with (run / "losses_qrnn.py").open("a") as file:
        file.write("\nfrom .private import x\n")
    with pytest.raises(ValueError, match=r"`losses_qrnn\.py` must import .* imports 'private'"):
        shared_files(run)


def test_shards_are_sent_by_the_index_and_load(run: Path, hub: HubStandIn) -> None:
    (run / "model.safetensors").unlink()
    AutoModelForSeq2SeqLM.from_pretrained(_copy_of_weights(run)).save_pretrained(
        run, max_shard_size=3000
    )
    shards = {path.name for path in run.glob("model-*.safetensors")}
    assert len(shards) > 1
    stale = run / "model-00001-of-00099.safetensors"
    stale.write_bytes(b"stale")
    expected = shards | {"model.safetensors.index.json"}
    assert {name for name in names(run) if kind_of(name) == "weights"} == expected
    push(run, REPO)
    assert expected <= set(hub.files(REPO))


def _copy_of_weights(run: Path) -> Path:
    folder = run.parent / "copy"
    save_model(folder, seed=3)
    return folder


@pytest.mark.parametrize(
    "name", ["../../outside/metrics.jsonl", "/etc/hostname", "secret.safetensors", 7, None]
)
def test_an_index_that_names_anything_else_is_refused(name: object, run: Path) -> None:
    (run / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": name}}
    (run / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json` must name shards of weights, but names"):
        shared_files(run)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model-00001-of-00002.safetensors", "weights"),
        ("model.safetensors.index.json", "weights"),
        ("generation_config.json", "config"),
        ("spiece.model", "tokenizer"),
        ("modeling_qrnn.py", "code"),
        ("custom_generate/generate.py", "code"),
        ("custom_generate/other.py", None),
        ("README.md", None),
        ("secret.model", None),
        ("train.py", None),
        ("data/config.json", None),
    ],
)
def test_kind_of(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


# ------------------------------------------------------------------ links


def _link(run: Path, name: str, target: str | Path) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)


@pytest.mark.parametrize("name", ["metrics.jsonl", "README.md", "config.json", "LICENSE"])
@pytest.mark.parametrize(
    "target", ["../../outside/metrics.jsonl", "/etc/hostname", "/nowhere/at/all"]
)
def test_a_link_that_leaves_the_folder_is_refused(
    name: str, target: str, run: Path, hub: HubStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    _link(run, name, target)
    assert main(["push", str(run), REPO]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(
        f"error: `MODEL` must hold no link that leaves the folder, but {name!r} leads to "
    )
    assert hub.log == []


@pytest.mark.parametrize("name", ["model.safetensors", "modeling_qrnn.py", "layers_qrnn.py"])
def test_a_link_to_weights_or_code_elsewhere_is_refused(name: str, run: Path) -> None:
    shutil.move(run / name, run.parent / name)
    _link(run, name, run.parent / name)
    with pytest.raises(ValueError, match=f"no link that leaves the folder, but '{name}'"):
        shared_files(run)


def test_a_link_through_a_folder_that_leads_out_is_refused(run: Path) -> None:
    (run / "logs").symlink_to(run.parents[1] / "outside")
    _link(run, "metrics.jsonl", "logs/metrics.jsonl")
    with pytest.raises(ValueError, match=r"leaves the folder, but 'metrics\.jsonl' leads to"):
        shared_files(run)


def test_links_within_the_folder_and_to_it_are_followed(run: Path, hub: HubStandIn) -> None:
    (run / "logs").mkdir()
    shutil.move(run / "metrics.jsonl", run / "logs" / "all.jsonl")
    _link(run, "metrics.jsonl", "logs/all.jsonl")
    (run / "checkpoints" / "far").symlink_to("/etc")  # not sent, so of no concern
    best = run.parents[1] / "best"
    best.symlink_to(run)
    push(best, REPO)
    assert hub.files(REPO)["metrics.jsonl"] == (run / "logs" / "all.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "nowhere"])
def test_what_is_no_file_is_refused(kind: str, run: Path) -> None:
    path = run / "metrics.jsonl"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("metrics.jsonl" if kind == "loop" else "gone.jsonl")
    with pytest.raises(ValueError, match=r"`MODEL` must hold (plain )?files, but 'metrics\.jsonl'"):
        shared_files(run)


# ------------------------------------------------------------------ files that files name


def test_no_file_that_a_run_names_is_opened(run: Path, hub: HubStandIn) -> None:
    secret = run.parents[1] / "outside" / "secret.md"
    secret.write_text(SECRET)
    (run / "README.md").unlink()
    described = {
        "command": "train.py", "date": "2026-01-01",
        "options": {"seed": 1, "card_about": str(secret)},
        "hardware": {"device": "cpu", "machine": "x", "cpu_capability": "AVX2", "threads": 1},
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(described))
    assert main(["push", str(run), REPO]) == 0
    assert SECRET.encode() not in b"".join(hub.files(REPO).values())


def test_paths_in_the_tokenizers_config_are_left_out(run: Path, hub: HubStandIn) -> None:
    path = run / "tokenizer_config.json"
    config = json.loads(path.read_text())
    paths = {"vocab_file": "/home/ann/vocab.json", "name_or_path": "/home/ann/model"}
    path.write_text(json.dumps(config | paths | {"fast_tokenizer_files": ["../x"]}))
    push(run, REPO)
    assert json.loads(hub.files(REPO)["tokenizer_config.json"]) == config
    assert b"/home/ann" not in b"".join(hub.files(REPO).values())
