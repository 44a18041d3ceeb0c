"""The command ``export``: the file that it leaves, what it shows, and its exit status."""

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from mlperf_opt import cli
from mlperf_opt.commands import export
from mlperf_opt.composition import MAIN, compose
from mlperf_opt.config import build_config, load
from mlperf_opt.errors import MlperfOptError
from mlperf_opt.onnx_export import export as export_graph
from mlperf_opt.ops import OPS
from mlperf_opt.overrides import normalize, parse
from mlperf_opt.passes import PassContext
from mlperf_opt.runtimes import NUMPY, complete

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*words):
    console = Console(file=io.StringIO(), width=100, markup=True)
    status = export.run(normalize(parse(list(words))), console)
    return status, [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_the_baseline_is_written_and_compared(tmp_path):
    status, shown = run("model=mlp", "passes=[]", "save=deep/er/mlp.onnx")
    assert status == 0
    content = (tmp_path / "deep" / "er" / "mlp.onnx").read_bytes()
    mlp = {"name": "mlp", "family": "DigitMLP", "weights": None, "image": [1, 8, 8], "sizes": [64, 32, 10]}
    plain = {"model": mlp, "data": {"name": "digits"}, "runtime": {}, "measure": {}, "passes": {}, "seed": 0}
    assert content == export_graph(load(build_config(plain))[0])
    assert shown[0] == "runtime accuracy equal predictions max |diff| of logits"
    assert shown[2].startswith("compiled 0.9") and shown[2].endswith("- -")
    assert shown[3].startswith("onnxruntime 0.9") and "597 of 597" in shown[3]
    assert shown[-1].startswith(
        f"mlp (no passes) written to deep/er/mlp.onnx: {len(content):,} bytes, opset 20, IR version 9"
    )


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_int8_predictions_are_equal(model):
    status, shown = run(f"model={model}", "passes=[quant]")
    assert status == 0
    assert " 597 of 597 0" in shown[3]


def test_a_cached_transformer_gives_the_same_tokens(tmp_path):
    status, shown = run("model=transformer", "passes=quant+kv_cache")
    assert status == 0
    assert "equal tokens" in shown[0] and "16,000 of 16,000 8,000 of 8,000" in shown[3]
    proto = onnx.load(tmp_path / "outputs" / "models" / "transformer.onnx")
    assert "past.position" in [i.name for i in proto.graph.input]


def test_a_pipeline_is_exported_as_its_last_step_leaves_it():
    status, shown = run("model=cnn", "pipeline=olympics", "save=x.onnx")
    assert status == 0
    assert shown[-1].startswith("cnn (") and "written to x.onnx" in shown[-1]


def test_of_a_pipeline_with_branches_the_last_is_named():
    status, shown = run("model=transformer", "pipeline=generation", "save=x.onnx")
    assert status == 0
    assert "using the last branch (window), without kv_cache, int8, int8_kv_cache, int8_int8_cache" in shown


def test_an_old_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    (tmp_path / "mlp.onnx").write_text("old")
    assert run("model=mlp", "passes=[]", "save=mlp.onnx")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mlp.onnx"]
    assert onnx.load(tmp_path / "mlp.onnx").graph.name == "mlp"


def test_a_disagreement_is_said_and_is_the_exit_status(monkeypatch):
    monkeypatch.setitem(OPS, "relu", replace(OPS["relu"], onnx=OPS["gelu"].onnx))
    status, shown = run("model=cnn", "passes=[]", "save=cnn.onnx")
    assert status == 1
    for line, how in zip(shown[-2:], ("onnxruntime", "onnxruntime, unfused"), strict=True):
        assert line.startswith(f"{how} disagrees with the compiled runtime: outputs differ by")


def test_our_side_of_the_comparison_is_never_onnxruntime():
    assert run("model=mlp", "passes=[]", "runtime=onnx")[1][2].startswith("numpy ")


def test_the_configuration_can_be_shown(tmp_path):
    status, shown = run("model=cnn", "passes=[quant]", "save=a.onnx", "--cfg", "job")
    assert status == 0 and "save: a.onnx" in shown and "scheme: static" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words, message",
    [
        (["save=model.bin"], "^save=model.bin: expected the path of a file that ends in .onnx$"),
        (["save=[1]"], "expected a path$"),
        (["save=folder.onnx"], "^save=folder.onnx: expected the path of a file"),
        (["-m", "model=mlp,cnn"], "^export takes one model at a time, without -m$"),
        (["passes=[kv_cache]"], "^kv_cache: mlp has no attention"),
        (["sav=x.onnx"], "^sav: no such setting"),
    ],
)
def test_a_mistake_is_refused_before_any_work(words, message, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(MlperfOptError, match=message):
        run(*words)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


@pytest.mark.slow
def test_a_text_is_compared_in_little_memory(shakespeare, tmp_path):
    """218 windows of 256 tokens at once took 3.4 GB: attention by the square of 256, and onnxruntime gives nothing back."""
    words = ["export", "model=chargpt", f"data.path={shakespeare}", "save=x.onnx"]
    process = subprocess.Popen([sys.executable, "-m", "mlperf_opt", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0 and (tmp_path / "x.onnx").exists()
    assert used.ru_maxrss < 700 * 1024, f"{used.ru_maxrss} KiB"


def test_help_explains_it(capsys):
    assert cli.main(["export", "--help"]) == 0
    assert "ONNX" in capsys.readouterr().out


def test_the_program_in_the_docs_continues_a_prompt(tmp_path):
    """Its loop over past and present gives what our own session gives."""
    assert run("model=transformer", "passes=[kv_cache]", "save=transformer.onnx")[0] == 0
    page = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text(encoding="utf-8")
    program = re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    plain = compose(MAIN, ["model=transformer", "passes=[kv_cache]"], None)
    config = build_config(plain)
    graph, data = load(config)
    graph = config.steps[0].apply(graph, PassContext(data, 0, NUMPY)).graph
    expected = complete(NUMPY.prepare(graph), np.array([[3, 1, 4, 26]]), 3)[0]
    assert done.stdout.split() == [f"[{token}]" for token in expected]
