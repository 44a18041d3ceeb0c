"""Break the compiled runtime, one piece at a time: the ordinary run compares it with the numpy runtime, and must notice."""

from dataclasses import replace

import numpy as np
import pytest

from mlperf_opt.ops import OPS
from mlperf_opt.runtimes.compiled import lowerings, products, sparse_ops
from mlperf_opt.runtimes.compiled.program import Program

pytestmark = pytest.mark.integration


def _drop_largest(pack):
    """A packing that loses one weight."""

    def broken(weight, *rest):
        lossy = weight.copy()
        lossy[np.unravel_index(np.abs(lossy).argmax(), lossy.shape)] = 0
        return pack(lossy, *rest)

    return broken


def _forget_biases(monkeypatch):
    original = Program.weight
    monkeypatch.setattr(
        Program, "weight", lambda self, name: original(self, name) * (0 if ".bias" in name else 1), raising=True
    )


BROKEN = {
    "float weights lose one": lambda m: m.setattr(products, "pack_floats", _drop_largest(products.pack_floats)),
    "a bias is forgotten": _forget_biases,
    "relu does nothing": lambda m: m.setattr(products, "float_bits", lambda value: 0xFF800000),
    "attention forgets the past": lambda m: m.setitem(
        lowerings.LOWERINGS, "attention", lambda program, node: program.alias(node.output, program.value(node.inputs[2]))
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_wrong_kernel_differs_from_the_numpy_runtime(rows, healthy, monkeypatch, what):
    job = ["model=transformer" if "attention" in what else "model=mlp", "passes=[profile]", "measure.split=calibration"]
    healthy(*job)
    BROKEN[what](monkeypatch)
    status, table, _ = rows(*job)
    assert status == 1
    assert (table["status"] == "INVALID").all()
    assert table["reasons"].str.contains("differs from the numpy runtime").all()


def _values_for(argument):
    """Lower cached_attention so that it reads the values in place of an argument."""

    def breaks(monkeypatch):
        lower = lowerings.LOWERINGS["cached_attention"]
        place = OPS["cached_attention"].position(argument)

        def broken(program, node):
            inputs = [node.argument("values") if i == place else name for i, name in enumerate(node.inputs)]
            lower(program, replace(node, inputs=tuple(inputs)))

        monkeypatch.setitem(lowerings.LOWERINGS, "cached_attention", broken)

    return breaks


def _no_scales(monkeypatch):
    monkeypatch.setitem(lowerings.LOWERINGS, "head_scale", lambda program, node: program.new(node))


CACHES = {
    "values are taken for keys": ("int8", _values_for("keys")),
    "values of float16 are taken for keys": ("fp16", _values_for("keys")),
    "no scale of a value is found": ("int8", _no_scales),
}


@pytest.mark.parametrize("what", CACHES)
def test_a_wrong_cache_differs_from_the_numpy_runtime(rows, healthy, monkeypatch, what):
    dtype, breaks = CACHES[what]
    job = ["model=transformer", "passes=[kv_cache]", f"passes.kv_cache.dtype={dtype}", "measure.split=calibration"]
    healthy(*job)
    breaks(monkeypatch)
    status, table, _ = rows(*job)
    assert status == 1
    assert table["status"].iloc[1] == "INVALID" and "differs from the numpy runtime" in table["reasons"].iloc[1]


INTEGERS = {
    "codes lose one": lambda m: m.setattr(products, "pack_int8", _drop_largest(products.pack_int8)),
    "a bias is forgotten": _forget_biases,
    "relu does nothing": lambda m: m.setattr(products, "float_bits", lambda value: 0xFF800000),
}
INTEGER_JOBS = [("codes lose one", "static"), ("codes lose one", "dynamic"), ("a bias is forgotten", "static")]


@pytest.mark.parametrize("what, scheme", [*INTEGER_JOBS, ("relu does nothing", "dynamic")])
def test_a_wrong_integer_kernel_is_held_to_more_than_a_step(rows, healthy, monkeypatch, what, scheme):
    """A few steps of a grid would hide one lost weight; but codes of exact values are equal, so that nothing is allowed."""
    job = ["model=cnn", "passes=[quant]", f"passes.quant.scheme={scheme}"]
    healthy(*job)
    INTEGERS[what](monkeypatch)
    status, table, _ = rows(*job)
    assert status == 1
    assert table["status"].iloc[1] == "INVALID" and "differs from the numpy runtime" in table["reasons"].iloc[1]


@pytest.mark.parametrize(
    "pack, fact", [("pack_few", "differs from the quality run"), ("pack_many", "differs from the numpy runtime")]
)
def test_a_sparse_packing_that_loses_an_entry(rows, healthy, monkeypatch, pack, fact):
    """The packing for one row runs in the timed queries alone, that for many wherever there is a batch."""
    job = ["model=mlp", "passes=[prune]", "passes.prune.sparsity=0.5", "runtime.sparse=always"]
    healthy(*job)
    monkeypatch.setattr(sparse_ops, pack, _drop_largest(getattr(sparse_ops, pack)))
    status, table, _ = rows(*job)
    assert status == 1
    assert (table["status"] == "INVALID").all()
    assert table["reasons"].str.contains(fact).all()
