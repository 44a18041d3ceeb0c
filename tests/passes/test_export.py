"""export: the file that it returns, what it records, and what it refuses to write."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from pass_graphs import run_pass

from mlperf_opt.errors import PassError
from mlperf_opt.onnx_export import IR_VERSION, OPSET, export
from mlperf_opt.ops import OPS
from mlperf_opt.ops.onnx_form import node
from mlperf_opt.passes.export import Export
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.passes.quant import Quant
from mlperf_opt.runtimes import NUMPY, OnnxExecutable, stepwise


@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("settings", [None, {}, {"scheme": "dynamic"}, {"scheme": "weight_only"}, {"dtype": "fp16"}])
def test_returns_the_file_and_says_how_it_agrees(request, model, settings):
    graph, data = request.getfixturevalue(model)
    graph = graph if settings is None else run_pass(Quant(**settings), graph, data).graph
    result = run_pass(Export(), graph, data)
    assert result.graph is graph
    assert dict(result.files) == {"onnx": export(graph)}
    (row,) = result.tables["check"]
    content = result.files["onnx"]
    places = 16 if model == "transformer" else 1
    assert (
        row
        == result.stats
        == {
            "model": model,
            "opset": OPSET,
            "ir_version": IR_VERSION,
            "checker": "passed",
            "file_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "predictions": 200 * places,
            "equal_share": 1.0,
            "max_abs_diff": row["max_abs_diff"],
            "unfused_equal_share": 1.0,
            "unfused_max_abs_diff": row["unfused_max_abs_diff"],
        }
    )
    expected = stepwise(NUMPY.prepare(graph), data.calibration.inputs)
    for fuse, column in ((True, "max_abs_diff"), (False, "unfused_max_abs_diff")):
        actual = stepwise(OnnxExecutable(graph, content, fuse=fuse), data.calibration.inputs)
        assert row[column] == float(np.abs(expected - actual).max())


def test_a_cache_is_compared_token_by_token(transformer, monkeypatch):
    """A mistake in how the past is read does not show in a prefill."""
    graph, data = transformer
    graph = run_pass(KvCache(), graph, data).graph
    assert run_pass(Export(), graph, data).stats["equal_share"] == 1.0

    def forgets(_position, _lengths):
        return (node("Identity", "lengths"),)

    monkeypatch.setitem(OPS, "advance", replace(OPS["advance"], onnx=forgets))
    with pytest.raises(PassError, match="onnxruntime disagrees with the numpy runtime: outputs differ by"):
        run_pass(Export(), graph, data)


def test_half_the_bits_are_half_the_file(mlp):
    graph, data = mlp
    whole, half = (
        run_pass(Export(), g, data).stats["file_bytes"] for g in (graph, run_pass(Quant(dtype="fp16"), *mlp).graph)
    )
    weights = 2410
    assert whole - half == pytest.approx(2 * weights, rel=0.06)  # a Cast a weight is what it costs
    assert whole == pytest.approx(4 * weights, rel=0.05)


def test_without_onnxruntime_the_file_is_made_and_not_compared(mlp, monkeypatch):
    monkeypatch.setattr("mlperf_opt.passes.export.is_installed", lambda package: package != "onnxruntime")
    result = run_pass(Export(), *mlp)
    assert result.files["onnx"] == export(mlp[0])
    assert [result.stats[key] for key in ("predictions", "equal_share", "unfused_max_abs_diff")] == [None] * 3
