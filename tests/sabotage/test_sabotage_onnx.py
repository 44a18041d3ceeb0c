"""Break the ONNX form of one op at a time: the pass export refuses to write a file that computes something else."""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest

from mlperf_opt import cli
from mlperf_opt.composition import MAIN, compose, register_pipelines
from mlperf_opt.config import build_config, load
from mlperf_opt.errors import MlperfOptError
from mlperf_opt.graph import GraphBuilder
from mlperf_opt.ops import OPS
from mlperf_opt.overrides import CommandLine
from mlperf_opt.passes import PassContext
from mlperf_opt.passes.export import Export
from mlperf_opt.runtimes import NUMPY, OnnxExecutable, difference

pytestmark = pytest.mark.integration


def changed(kind, **attributes):
    """Every operator of a kind gets other attributes; an attribute that it hasn't stays out."""

    def apply(step):
        if step.kind != kind:
            return step
        return replace(step, attributes={k: attributes.get(k, v) for k, v in step.attributes.items()})

    return apply


def reading(kind, place, source):
    """Every operator of a kind reads something else in one place."""

    def apply(step):
        if step.kind != kind or len(step.inputs) <= place:
            return step
        inputs = [*step.inputs]
        inputs[place] = source
        return replace(step, inputs=tuple(inputs))

    return apply


def without(kind, place):
    """Every operator of a kind loses its inputs from a place on."""
    return lambda step: replace(step, inputs=step.inputs[:place]) if step.kind == kind else step


def instead(kind, other):
    return lambda step: replace(step, kind=other) if step.kind == kind else step


def named(output, change):
    return lambda step: change(step) if step.output == output else step


STATIC = ("passes=[quant,export]",)
DYNAMIC = ("passes=[quant,export]", "passes.quant.scheme=dynamic")
CACHED = ("model=transformer", "passes=[kv_cache,export]")
TRANSFORMER = ("model=transformer", "passes=[export]")
BREAKAGES = {
    # the weight is square in attention's projections, so that nothing but the numbers is wrong
    "scales along the wrong axis": (
        ("model=transformer", *STATIC),
        "qlinear",
        named("real_w", changed("DequantizeLinear", axis=0)),
    ),
    "one scale for all channels": (STATIC, "qlinear", named("real_w", reading("DequantizeLinear", 1, np.float32(0.01)))),
    "no zero point of the input": (
        ("model=transformer", *STATIC),
        "qlinear",
        named("real_x", reading("DequantizeLinear", 2, np.uint8(0))),
    ),
    "no bias": (STATIC, "qlinear", without("Gemm", 2)),
    "padding on one side less": (("model=cnn", *STATIC), "qconv2d", changed("Conv", pads=[0, 0, 2, 2])),
    "a relu that is the whole grid": (
        ("model=cnn", *STATIC),
        "qconv2d",
        named("out", reading("QuantizeLinear", 2, np.uint8(9))),
    ),
    "zero points that don't leave the product": (
        ("model=transformer", *DYNAMIC),
        "qlinear",
        named("offset", instead("Mul", "Add")),
    ),
    "rows on a grid that ends too early": (
        DYNAMIC,
        "quantize",
        named("legal", reading("Clip", 2, np.float32(100))),
    ),
    "gelu's other form": (("model=transformer", "passes=[export]"), "gelu", changed("Gelu", approximate="none")),
    "no causal mask": (TRANSFORMER, "attention", instead("LessOrEqual", "GreaterOrEqual")),
    "an average instead of a maximum": (("model=cnn", "passes=[export]"), "max_pool2d", instead("MaxPool", "AveragePool")),
    "norms with another epsilon": (TRANSFORMER, "layer_norm", changed("LayerNormalization", epsilon=0.01)),
    "a cache that forgets what it held": (CACHED, "cache_write", reading("Where", 2, "candidates")),
    "a cache written one place late": (CACHED, "cache_write", named("token", reading("Sub", 0, "start"))),
    "a query that sees one place less": (CACHED, "cached_attention", instead("LessOrEqual", "Less")),
    "positions that never advance": (CACHED, "advance", reading("Add", 1, np.int64(0))),
    "every row at place 0": (CACHED, "learned_positions", named("unlimited", reading("Add", 0, "time"))),
}


NAMED_CHECKS = ("disagrees with the numpy runtime", "onnx.checker refuses", "onnxruntime refuses", "onnxruntime: ")


@cache
def _before_export(*words):
    """The graph that the last step, export, is given, and its data."""
    register_pipelines(CommandLine([]))
    config = build_config(compose(MAIN, list(words), None))
    graph, data = load(config)
    for step in config.steps[:-1]:
        graph = step.apply(graph, PassContext(data, 0, NUMPY)).graph
    return graph, data


def _break(monkeypatch, op, change):
    original = OPS[op].onnx
    broken = replace(OPS[op], onnx=lambda *specs, **attributes: tuple(map(change, original(*specs, **attributes))))
    monkeypatch.setitem(OPS, op, broken)


@pytest.mark.parametrize("arguments, op, change", BREAKAGES.values(), ids=list(BREAKAGES))
def test_a_broken_onnx_form_gives_no_file(monkeypatch, arguments, op, change):
    graph, data = _before_export(*arguments)
    context = PassContext(data, 0, NUMPY)
    assert list(Export()(graph, context).files) == ["onnx"]
    _break(monkeypatch, op, change)
    with pytest.raises(MlperfOptError, match="|".join(map(re.escape, NAMED_CHECKS))):
        Export()(graph, context)


@pytest.mark.parametrize("name", ["no bias", "padding on one side less"])
def test_the_ordinary_run_fails_and_writes_no_file(name, monkeypatch, tmp_path, capsys):
    arguments, op, change = BREAKAGES[name]
    monkeypatch.chdir(tmp_path)
    words = [*arguments, "measure.seconds=0.004"]
    assert cli.main([*words, "hydra.run.dir=whole"]) == 0
    assert [path.name for path in tmp_path.glob("whole/*.onnx")] == ["02-export.onnx"]
    _break(monkeypatch, op, change)
    capsys.readouterr()
    assert cli.main([*words, "hydra.run.dir=broken"]) == 2
    last = pd.read_csv(tmp_path / "broken" / "metrics.csv").iloc[-1]
    assert (last["name"], last["status"]) == ("export", "INVALID")
    assert NAMED_CHECKS[0] in last["reasons"] and NAMED_CHECKS[0] in capsys.readouterr().err
    assert list(tmp_path.glob("broken/*.onnx")) == []


def test_scales_along_the_wrong_axis_of_a_square_show_operator_by_operator_alone(monkeypatch, rng):
    """onnxruntime's fused product takes them along the right one, whatever the file says: it can't be the only judge."""
    build = GraphBuilder("square")
    x = build.input("x", ("N", "T", 4), "float32")
    grid = {"scale": np.array(0.02, np.float32), "zero": np.array(128, np.uint8)}
    codes = build.node("quantize", "codes", x, **grid)
    weight, w_scale = rng.integers(-127, 128, (4, 4)).astype(np.int8), np.array([0.01, 0.1, 1, 10], np.float32)
    x_grid = {"x_scale": grid["scale"], "x_zero": grid["zero"]}
    graph = build.finish(build.node("qlinear", "y", codes, **x_grid, weight=weight, w_scale=w_scale))
    inputs = rng.normal(size=(3, 5, 4)).astype(np.float32)
    expected = NUMPY.prepare(graph)(inputs)

    def judge(fuse):
        return difference(expected, OnnxExecutable(graph, fuse=fuse)(inputs), quantized=True)

    assert judge(True) == judge(False) == ""
    original = OPS["qlinear"].onnx
    change = named("real_w", changed("DequantizeLinear", axis=0))
    monkeypatch.setitem(OPS, "qlinear", replace(OPS["qlinear"], onnx=lambda *s: tuple(map(change, original(*s)))))
    assert judge(True) == ""
    assert judge(False).startswith("outputs differ by")
