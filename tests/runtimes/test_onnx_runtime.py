"""runtime=onnx beyond what every runtime must do: its errors, its inputs, and what is said where it is missing."""

import subprocess
import sys

import numpy as np
import pytest

from mlperf_opt import cli
from mlperf_opt.errors import GraphError
from mlperf_opt.graph import GraphBuilder
from mlperf_opt.onnx_export import export
from mlperf_opt.runtimes import NUMPY, ONNX, OnnxExecutable


@pytest.fixture
def missing(monkeypatch):
    """As if the extra were not installed."""
    monkeypatch.setattr("mlperf_opt.extras.is_installed", lambda _package: False)


def _table():
    build = GraphBuilder("lookup")
    tokens = build.input("tokens", ("N", "T"), "int64")
    return build.finish(build.node("embedding", "rows", tokens, table=np.eye(3, dtype=np.float32)))


def test_an_error_of_onnxruntime_is_one_line(capfd):
    with pytest.raises(GraphError, match=r"^onnxruntime: [^\n]*int64[^\n]*$"):
        ONNX.prepare(_table())(np.array([[1]], np.int32))
    assert capfd.readouterr() == ("", ""), "onnxruntime says nothing itself"


def test_a_file_that_is_none_is_refused():
    with pytest.raises(GraphError, match=r"^onnxruntime refuses the model: [^\n]+$"):
        OnnxExecutable(_table(), b"no model")


def test_what_runs_is_the_given_file():
    build = GraphBuilder("other")
    tokens = build.input("tokens", ("N", "T"), "int64")
    other = build.finish(build.node("embedding", "rows", tokens, table=2 * np.eye(3, dtype=np.float32)))
    assert OnnxExecutable(_table(), export(other))(np.array([[1]])).tolist() == [[[0, 2, 0]]]


def test_inputs_need_not_lie_in_one_piece():
    tokens = np.arange(12).reshape(3, 4).T[:, ::2] % 3
    assert not tokens.flags.c_contiguous
    np.testing.assert_array_equal(ONNX.prepare(_table())(tokens), NUMPY.prepare(_table())(tokens))


def test_memory_that_can_not_be_seen_is_not_measured():
    assert NUMPY.traced and not ONNX.traced


@pytest.mark.parametrize(
    "words, what",
    [
        (["runtime=onnx"], "runtime=onnx needs onnx and onnxruntime"),
        (["passes=[quant,export]"], "export needs onnx"),
        (["export", "model=mlp"], "export needs onnx and onnxruntime"),
        (["-m", "runtime=numpy,onnx"], "runtime=onnx needs onnx and onnxruntime"),
    ],
)
def test_a_missing_extra_is_named_before_any_folder_is_made(missing, words, what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert what in shown.err and "pip install 'mlperf-opt[onnx]'" in shown.err
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_everything_else_works(missing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["passes=[quant]", "measure.seconds=0.02"]) == 0


def test_onnx_is_imported_only_where_it_is_used():
    """Importing it would slow every other command."""
    code = (
        "import sys; import mlperf_opt.commands.optimize, mlperf_opt.commands.export;"
        "print(sorted({'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
