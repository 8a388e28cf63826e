"""hf_qrnn.registration: whatever is imported first, our names are there before they are needed."""

import importlib
import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers
from small_models import small, small_model
from transformers.models.auto import modeling_auto

from hf_qrnn import QRNN, QRNNCache, QRNNConfig, QRNNForCausalLM, QRNNState, registration
from hf_qrnn.model import modeling_qrnn

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

# What somebody does who loads a model: `folder` is the program's argument.
CHECK = """
import sys
folder = sys.argv[1]

def check(trust=None):
    import transformers
    from transformers.models.auto import modeling_auto
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    assert type(config).__module__ == "hf_qrnn.model.configuration_qrnn", type(config)
    for auto, name in (
        ("AutoModel", "QRNNModel"),
        ("AutoModelForCausalLM", "QRNNForCausalLM"),
        ("AutoModelForSequenceClassification", "QRNNForSequenceClassification"),
    ):
        assert type(config) in getattr(transformers, auto)._model_mapping
        model = getattr(transformers, auto).from_config(config, trust_remote_code=trust)
        assert type(model).__name__ == name and type(model).__module__.startswith("hf_qrnn.")
    auto = transformers.AutoModelForSeq2SeqLM
    model = auto.from_pretrained(folder, trust_remote_code=trust)
    assert type(model).__module__ == "hf_qrnn.model.modeling_qrnn", type(model)
    assert modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["qrnn"] == "QRNNForCausalLM"
    assert model.is_remote_code()  # its code goes into what it saves
"""

# Programs up to the first look at a table, in one process each.
ORDERS = {
    "package, transformers": "import hf_qrnn, transformers",
    "transformers, package": "import transformers, hf_qrnn",
    "package, an Auto class": "import hf_qrnn; from transformers import AutoModelForSeq2SeqLM",
    "an Auto class, package": "from transformers import AutoModelForSeq2SeqLM; import hf_qrnn",
    "package, the module": "import hf_qrnn, transformers.models.auto.modeling_auto",
    "torch, package, models": "import torch, hf_qrnn; from transformers import BertModel",
    "models, package": "from transformers import Trainer, pipeline; import hf_qrnn",
    # These import torch, and transformers imports them.
    "package, Accelerate": "import hf_qrnn, accelerate, safetensors.torch",
    "a file of the package": "import hf_qrnn.model.attention_qrnn",
    "the pipeline's file": "import hf_qrnn.model.pipeline_qrnn",
    "a star": "from hf_qrnn import *; QRNNConfig",
    "a failed import": """
class Fails:
    def find_spec(self, name, path=None, target=None):
        if name == "transformers.models.auto.auto_factory":
            raise ImportError(name)

import hf_qrnn
sys.meta_path.insert(0, Fails())
for _ in range(2):
    try:
        import transformers.models.auto.modeling_auto
    except ImportError:
        pass
    else:
        raise AssertionError
del sys.meta_path[0]
""",
    "a reload": """
import importlib, hf_qrnn
importlib.reload(hf_qrnn)
import transformers.models.auto.modeling_auto as tables
importlib.reload(hf_qrnn)
importlib.reload(tables)
assert sum(type(finder).__module__ == "hf_qrnn.registration" for finder in sys.meta_path) == 1
""",
    "the package anew": """
import hf_qrnn
for name in [name for name in sys.modules if name.split(".")[0] == "hf_qrnn"]:
    del sys.modules[name]
import hf_qrnn
""",
    "a lazy loader of somebody else": """
import importlib.util, hf_qrnn
spec = importlib.util.find_spec("torch")
spec.loader = loader = importlib.util.LazyLoader(spec.loader)
sys.modules["torch"] = torch = importlib.util.module_from_spec(spec)
loader.exec_module(torch)
assert hasattr(torch.ops.hf_qrnn, "pool_v2")
""",
    "a finder that asks all others": """
import importlib.util, threading, hf_qrnn

class Wrapper:
    inside = threading.local()

    def find_spec(self, name, path=None, target=None):
        if getattr(self.inside, "name", None) == name:
            return None
        self.inside.name = name
        try:
            return importlib.util.find_spec(name)
        finally:
            self.inside.name = None

sys.meta_path.insert(0, Wrapper())
import torch
assert hasattr(torch.ops.hf_qrnn, "pool_v2")
""",
    "threads": """
# Alone first: transformers itself stands no threads in the first import of it.
import threading, hf_qrnn, transformers
statements = [
    "import transformers.models.auto.modeling_auto", "from transformers import AutoConfig",
    "import torch; torch.ops.hf_qrnn.pool_v2", "hf_qrnn.QRNNConfig", "hf_qrnn.QRNNModel",
    "from transformers import pipeline", "hf_qrnn.QRNNTranslationPipeline", "hf_qrnn.QRNN",
]
barrier, failed = threading.Barrier(len(statements)), []

def run(statement):
    barrier.wait()
    try:
        exec(statement, {"hf_qrnn": hf_qrnn})
    except BaseException as error:
        failed.append((statement, repr(error)))

threads = [threading.Thread(target=run, args=(statement,)) for statement in statements]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failed, failed
from transformers.pipelines import PIPELINE_REGISTRY
assert "qrnn-translation" in PIPELINE_REGISTRY.get_supported_tasks()
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    small_model().save_pretrained(path)
    return path


def run(program: str, *arguments: Path) -> str:
    """Run a program of its own in which warnings are errors; return what it prints."""
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# ------------------------------------------------------------------ models and pipelines


@pytest.mark.parametrize("order", ORDERS)
def test_models_are_found_whatever_is_imported_first(order: str, folder: Path) -> None:
    run(f"{CHECK}\n{ORDERS[order]}\ncheck()", folder)


def test_own_classes_are_taken_where_code_is_trusted(folder: Path) -> None:
    run(f"{CHECK}\nimport hf_qrnn\ncheck(trust=True)", folder)


def test_pipeline_is_known_before_it_is_asked_for(folder: Path) -> None:
    for imports in ("import hf_qrnn, transformers", "import transformers.pipelines, hf_qrnn"):
        run(
            f"{imports}\n"
            "from transformers.pipelines import PIPELINE_REGISTRY as registry\n"
            "assert 'qrnn-translation' in registry.get_supported_tasks()\n"
            "kind = registry.check_task('qrnn-translation')[1]['impl']\n"
            "assert kind is hf_qrnn.QRNNTranslationPipeline\n"
        )


def test_looking_at_a_config_imports_no_model(folder: Path) -> None:
    # transformers' scripts list the kinds of models before they know which is wanted.
    run(
        "import hf_qrnn, sys\n"
        "from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig\n"
        "config = AutoConfig.from_pretrained(sys.argv[1])\n"
        "assert type(config) in MODEL_FOR_CAUSAL_LM_MAPPING\n"
        "assert 'qrnn' in [kind.model_type for kind in MODEL_FOR_CAUSAL_LM_MAPPING]\n"
        "assert len(MODEL_FOR_CAUSAL_LM_MAPPING) > 10\n"
        "assert 'hf_qrnn.model.modeling_qrnn' not in sys.modules\n"
        "assert MODEL_FOR_CAUSAL_LM_MAPPING[type(config)] is hf_qrnn.QRNNForCausalLM\n",
        folder,
    )


def test_a_process_that_unpickles_a_config_knows_its_model(tmp_path: Path) -> None:
    # As a spawned one does, which imports what the pickle names and nothing else of ours.
    file = tmp_path / "config.pickle"
    file.write_bytes(pickle.dumps(small()))
    run(
        "import pathlib, pickle, sys, transformers\n"
        "config = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "model = transformers.AutoModelForCausalLM.from_config(config)\n"
        "assert type(model).__module__ == 'hf_qrnn.model.modeling_qrnn'\n"
        "assert type(pickle.loads(pickle.dumps(model))) is type(model)\n",
        file,
    )


def test_heads_are_those_of_the_models() -> None:
    stated = {
        (kind.__name__, kind.registration.auto_class, kind.registration.names)
        for kind in modeling_qrnn.HEADS
    }
    assert set(registration.HEADS) == stated


# ------------------------------------------------------------------ programs and states of torch


@pytest.fixture(scope="module")
def of_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a program with our operation, one that takes a cache, a state, and what they give."""
    path = tmp_path_factory.mktemp("torch")
    torch.manual_seed(0)
    layer, x = QRNN(4, 6).eval(), torch.randn(5, 2, 4)
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
        output, state = layer(x)
    torch.export.save(program, path / "layer.pt2")
    torch.save({"x": x, "output": output, "state": state}, path / "state.pt")

    class Counts(torch.nn.Module):
        def forward(self, x: torch.Tensor, past: QRNNCache) -> torch.Tensor:
            return x + past.layer(0).c

    model = QRNNForCausalLM(small(is_encoder_decoder=False, is_decoder=True)).eval()
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        torch.export.save(torch.export.export(Counts(), (x[0, 0, :1], cache)), path / "cache.pt2")
    torch.save(cache, path / "cache.pt")
    return path


LOADS = """
import sys, warnings, torch, hf_qrnn
warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11's own reader
folder = sys.argv[1]
saved = torch.load(folder + "/state.pt", weights_only=True)
assert "transformers" not in sys.modules
assert type(saved["state"]).__module__ == "hf_qrnn.layer"
program = torch.export.load(folder + "/layer.pt2")
output, state = program.module()(saved["x"])
torch.testing.assert_close(output, saved["output"])
assert type(state) is hf_qrnn.QRNNState
"""


@pytest.mark.parametrize("imports", ["import torch, hf_qrnn", "import hf_qrnn, torch"])
def test_what_torch_saved_loads(imports: str, of_torch: Path) -> None:
    run(f"{imports}\n{LOADS}", of_torch)


@pytest.mark.parametrize(
    "imports", ["import torch, hf_qrnn", "import hf_qrnn, torch", "import transformers, hf_qrnn"]
)
def test_a_program_with_a_cache_loads(imports: str, of_torch: Path) -> None:
    program = "import sys, torch\nprogram = torch.export.load(sys.argv[1] + '/cache.pt2')\n"
    run(f"{imports}\n{program}assert 'QRNNCache' in str(program.call_spec.in_spec)", of_torch)


def test_a_cache_loads_where_its_name_was_used(of_torch: Path) -> None:
    run(
        "import sys, torch\n"
        "from hf_qrnn import QRNNCache\n"
        "cache = torch.load(sys.argv[1] + '/cache.pt', weights_only=True)\n"
        "assert type(cache) is QRNNCache and cache.get_seq_length() == 3\n",
        of_torch,
    )


def test_the_layer_needs_no_transformers() -> None:
    run(
        "import hf_qrnn, sys\n"
        "with hf_qrnn.use_backend('torch'):\n"
        "    layer = hf_qrnn.QRNN(4, 6)\n"
        "    import torch\n"
        "    layer(torch.randn(5, 2, 4))\n"
        "hf_qrnn.pool\n"
        "assert 'transformers' not in sys.modules\n"
    )


# ------------------------------------------------------------------ the table


def test_entries_are_a_dictionary_that_imports_what_is_looked_up() -> None:
    class Other:
        pass

    later = registration._Later("QRNNForCausalLM")
    entries = registration._Entries({Other: 1})
    entries[QRNNConfig] = later
    assert list(entries) == list(entries.keys()) == [Other, QRNNConfig]
    assert QRNNConfig in entries
    assert QRNNState not in entries
    assert entries._entries[QRNNConfig] is later  # not looked up yet
    assert entries.get(QRNNState) is None
    for found in (
        entries[QRNNConfig], entries.get(QRNNConfig), list(entries.values())[1],
        dict(entries)[QRNNConfig], dict(entries.items())[QRNNConfig], {**entries}[QRNNConfig],
    ):  # fmt: skip
        assert found is QRNNForCausalLM
    entries[QRNNConfig] = 2  # of somebody who registers a class of their own
    del entries[Other]
    assert dict(entries) == {QRNNConfig: 2}
    assert len(entries) == 1


def test_the_tables_of_transformers_have_the_classes() -> None:
    table = transformers.AutoModelForCausalLM._model_mapping
    assert table[QRNNConfig] is QRNNForCausalLM
    if hasattr(table, "_from_pickle"):  # 5.17 pickles none
        assert pickle.loads(pickle.dumps(table))[QRNNConfig] is QRNNForCausalLM


def test_models_are_registered_at_once_where_transformers_has_other_tables() -> None:
    registered = {}

    class Auto:
        def __init__(self, name: str) -> None:
            self.name = name

        def register(self, config: type, model: type, *, exist_ok: bool) -> None:
            assert config is QRNNConfig
            assert exist_ok
            registered[self.name] = model

    heads = registration.HEADS
    module = SimpleNamespace(
        **{head.auto_class: Auto(head.auto_class) for head in heads},
        **{head.names: {} for head in heads if head.names is not None},
    )
    registration._enter_models(module)
    assert registered == {kind.registration.auto_class: kind for kind in modeling_qrnn.HEADS}


# ------------------------------------------------------------------ the finder


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ModuleType]]:
    """Watch for a module `a_stranger`, which lies in `tmp_path`; the list has who was entered."""
    entered: list[ModuleType] = []
    monkeypatch.setattr(registration, "_ENTRIES", {"a_stranger": entered.append})
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_stranger.py").write_text("loader = __spec__.loader\n")
    importlib.invalidate_caches()
    yield entered
    sys.modules.pop("a_stranger", None)


def test_a_module_is_entered_after_each_execution(watched: list[ModuleType]) -> None:
    assert importlib.util.find_spec("a_stranger") is not None  # to find is not to load
    assert watched == []
    module = importlib.import_module("a_stranger")
    assert watched == [module]
    importlib.import_module("a_stranger")
    assert watched == [module]
    importlib.reload(module)
    assert watched == [module, module]
    del sys.modules["a_stranger"]
    again = importlib.import_module("a_stranger")
    assert watched[2:] == [again]
    registration.watch()  # for one that is there already
    assert watched[3:] == [again]


def test_a_module_has_the_loader_it_would_have_without_us(watched: list[ModuleType]) -> None:
    module = importlib.import_module("a_stranger")
    assert type(module.loader).__name__ == "SourceFileLoader"
    assert module.loader is module.__loader__ is module.__spec__.loader
    loader = importlib.util.find_spec("torch.nn").loader
    assert type(loader).__name__ == "SourceFileLoader"


def test_a_loader_that_was_only_found_is_asked_like_the_one_it_wraps(
    watched: list[ModuleType], tmp_path: Path
) -> None:
    spec = importlib.util.find_spec("a_stranger")
    assert spec.loader.get_filename("a_stranger") == str(tmp_path / "a_stranger.py")
    assert "loader" in spec.loader.get_source("a_stranger")
    assert not hasattr(spec.loader, "no_such_name")


def test_a_module_that_fails_is_entered_when_it_succeeds(
    watched: list[ModuleType], tmp_path: Path
) -> None:
    path = tmp_path / "a_stranger.py"
    path.write_text("raise RuntimeError('not today')\n")
    with pytest.raises(RuntimeError, match="not today"):
        importlib.import_module("a_stranger")
    assert watched == []
    path.write_text("here = True  # a line of another length\n")
    importlib.invalidate_caches()
    assert watched == [importlib.import_module("a_stranger")]


def test_an_entry_that_fails_fails_no_import(
    watched: list[ModuleType], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(module: ModuleType) -> None:
        raise ValueError("no room")

    monkeypatch.setitem(registration._ENTRIES, "a_stranger", fail)
    importlib.import_module("a_stranger")
    assert caplog.messages == ["hf_qrnn makes no entry in a_stranger: no room"]
    with pytest.raises(ValueError, match="no room"):  # who imports us must know
        registration.watch()


def test_a_module_that_does_not_exist_is_found_by_nobody(watched: list[ModuleType]) -> None:
    assert importlib.util.find_spec("no_such_module") is None
    (Path(sys.path[0]) / "a_stranger.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match="a_stranger"):
        importlib.import_module("a_stranger")


def test_modules_with_entries_exist() -> None:
    # A name that torch or transformers gave up would be waited for in vain.
    for name in registration._ENTRIES:
        assert importlib.util.find_spec(name) is not None, name
    assert modeling_auto.__name__ in registration._ENTRIES
