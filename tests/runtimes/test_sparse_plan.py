"""Which layers run sparse: the choice and its reasons, the break-even and the file that it is kept in."""

import json

import numpy as np
import pytest

from mlperf_opt.data import load_data
from mlperf_opt.graph import GraphBuilder
from mlperf_opt.networks import MinimalTransformer
from mlperf_opt.passes import PASSES, PassContext
from mlperf_opt.runtimes import COMPILED, NUMPY, RuntimeOptions, stepwise
from mlperf_opt.runtimes.compiled import break_even as module
from mlperf_opt.runtimes.compiled.break_even import BreakEven, Layer, break_even, measure

# (fixed, full): what every word costs is what 4, or 2, cost in a dense product
FROM_3_4, FROM_1_2 = (0.0, 4.0), (0.0, 2.0)
NEVER = (2.0, 1.0)


@pytest.fixture
def costs(monkeypatch, tmp_path):
    """Return a function that sets what is measured; the folder of the cache is empty."""
    measured = []
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")

    def give(one, many=None):
        def fake(layer):
            measured.append(layer)
            return (*one, *(many or one))

        monkeypatch.setattr(module, "measure", fake)
        return measured

    return give


def _weight(columns, inputs, zeros, dtype=np.float32):
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 127, (columns, inputs)).astype(dtype)
    weight.reshape(-1)[rng.choice(weight.size, round(zeros * weight.size), replace=False)] = 0
    return weight


def _graph(columns=80, inputs=80, zeros=0.9, dtype=np.float32, weight=None):
    weight = _weight(columns, inputs, zeros, dtype) if weight is None else weight
    build = GraphBuilder("graph")
    x = build.input("x", ("N", weight.shape[1]), "float32")
    if weight.dtype != np.int8:
        return build.finish(build.node("linear", "fc", x, weight=weight))
    one, none = np.ones((), np.float32), np.zeros((), np.uint8)
    x = build.node("quantize", "codes", x, scale=one, zero=none)
    return build.finish(build.node("qlinear", "fc", x, x_scale=one, x_zero=none, weight=weight, w_scale=one))


def _prepare(graph, **options):
    return COMPILED.configured(RuntimeOptions(**options)).prepare(graph)


def _note(graph, **options):
    return _prepare(graph, **options).notes.get("fc")


# the choice


def test_both_choices_are_explained(costs):
    costs(FROM_3_4)
    assert _note(_graph(zeros=0.9)) == "90 % zeros: sparse is faster here, break-even 78 % for one row, 79 % for many"
    assert _note(_graph(zeros=0.5)).startswith("50 % zeros: dense is faster here, break-even 7")
    costs(FROM_3_4, NEVER)
    note = _note(_graph(256, 80))
    assert note.startswith("90 % zeros: for one row sparse is faster here (break-even 7")
    assert note.endswith(" %), for many dense (over 99 %)")
    costs(NEVER, FROM_3_4)
    assert "for one row dense is faster here (break-even over 99 %), for many sparse (7" in _note(_graph(512, 80))


def test_what_a_note_says_agrees_with_the_choice_whatever_the_pattern(costs):
    """Zeros in whole groups of four cost an int8 product nothing, scattered ones save it little."""
    costs(FROM_1_2)
    clustered = np.repeat(_weight(80, 20, 0.6, np.int8), 4, axis=1)
    assert _note(_graph(weight=clustered)).startswith("60 % zeros: sparse is faster here, break-even 5")
    scattered = _graph(zeros=0.6, dtype=np.int8)
    assert _note(scattered).startswith("60 % zeros: dense is faster here, break-even 8")


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
@pytest.mark.parametrize(
    "one, many", [(FROM_3_4, FROM_3_4), (FROM_3_4, NEVER), (NEVER, FROM_3_4), (NEVER, NEVER), ((0, 0.001), (0, 0.001))]
)
def test_every_number_of_rows_is_right(costs, rng, dtype, one, many):
    costs(one, many)
    graph = _graph(dtype=dtype)
    executable, reference = _prepare(graph), NUMPY.prepare(graph)
    for rows in (1, 2, 3, 5, 15, 16, 24, 63, 64, 100, 300):
        x = rng.integers(0, 9, (rows, 80)).astype(np.float32)
        np.testing.assert_array_equal(executable(x), reference(x))  # sums of whole numbers are exact in float32 too
        np.testing.assert_array_equal(_prepare(graph, threads=2)(x), reference(x))


def _constant_bytes(graph, **options):
    return _prepare(graph, **options)._program.constants.nbytes


def test_only_what_is_used_is_packed(costs):
    graph = _graph(256, 256)
    dense, few_and_many = _constant_bytes(graph, sparse="never"), _constant_bytes(graph, sparse="always")
    assert few_and_many < dense / 2
    costs(FROM_3_4, NEVER)
    few = _constant_bytes(graph)
    assert few > dense  # one row sparse, many dense: both are there


def test_layers_in_which_nothing_can_be_gained_are_not_measured(monkeypatch):
    def never(_layer):
        raise AssertionError("measured")

    monkeypatch.setattr(module, "measure", never)
    monkeypatch.setattr(module, "_costs", never)
    for graph in (_graph(63, 65, 0.9), _graph(80, 80, 0.45), _graph(63, 65, 0.9, np.int8)):
        assert _prepare(graph).notes == {}
    assert _note(_graph(), sparse="never") is None
    assert _note(_graph(), sparse="always") == "90 % zeros: sparse, as set"


def test_convolutions_say_that_they_run_dense():
    weight = np.zeros((32, 16, 3, 3), np.float32)
    build = GraphBuilder("conv")
    x = build.input("x", ("N", 16, 8, 8), "float32")
    graph = build.finish(build.node("conv2d", "fc", x, weight=weight, stride=1, padding=1))
    assert _note(graph) == "100 % zeros: convolutions run dense"


def test_more_inputs_than_a_place_can_name_run_dense():
    weight = np.zeros((1, 65537), np.float32)
    weight[0, -1] = 1
    graph = _graph(weight=weight)
    assert _note(graph, sparse="always") == "over 99 % zeros: so many inputs run dense"
    assert _prepare(graph, sparse="always")(np.ones((1, 65537), np.float32)).item() == 1


def test_the_numpy_runtime_decides_nothing():
    assert NUMPY.prepare(_graph()).notes == {}


@pytest.mark.parametrize("before", ["none", "quant"])
def test_sessions_run_sparse_too(before):
    network = MinimalTransformer(vocabulary=9, context=8, layers=2, dim=16, heads=2, hidden=24)
    plain = network.build("t", np.random.default_rng(0))
    context = PassContext(load_data("reverse"), 0, NUMPY)
    graph = PASSES["prune"](sparsity=0.7)(plain, context).graph
    if before == "quant":
        graph = PASSES["quant"](scheme="dynamic")(graph, context).graph
    graph = PASSES["kv_cache"]()(graph, context).graph
    tokens = np.random.default_rng(0).integers(0, 9, (5, 8))
    dense, sparse = (stepwise(_prepare(graph, sparse=option), tokens) for option in ("never", "always"))
    np.testing.assert_allclose(sparse, dense, rtol=1e-4, atol=0.05 if before == "quant" else 1e-4)


# the break-even


def test_the_break_even_is_where_both_take_as_long():
    assert BreakEven(0.2, 4.0, 1).gain(0.2) == pytest.approx(1)
    assert BreakEven(0.0, 4.0, 1).gain(0.0) >= 100, "a layer of zeros alone, where nothing else takes time"
    assert BreakEven(0.2, 4.0, 1).zeros(0.9, 0.1) == "80 %"
    # of random zeros: 1 - 0.9^4 of the groups of four hold a weight
    assert BreakEven(0.0, 1 / (1 - 0.9**4), 4).zeros(0.5, 1 - 0.5**4) == "90 %"
    assert BreakEven(1.2, 4.0, 1).zeros(0.9, 0.1) == "over 99 %"
    assert BreakEven(0.0, 0.5, 1).zeros(0.9, 0.1) == "0 %"
    assert BreakEven(0.2, 4.0, 1).zeros(1.0, 0.0) == "80 %"


def test_layers_alike_share_a_measurement(costs):
    measured = costs(FROM_3_4)
    for layer in (Layer("float32", 300, 784), Layer("float32", 256, 1000), Layer("float32", 280, 900)):
        break_even(layer)
    assert measured == [Layer("float32", 256, 1024)]
    break_even(Layer("float16", 300, 784))
    break_even(Layer("float32", 1, 10**6))
    assert measured[1:] == [Layer("float16", 256, 1024), Layer("float32", 16, 1024)]


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "codes-auto", "codes-portable"])
def test_measuring_gives_sound_numbers(kind):
    found = measure(Layer(kind, 64, 128))
    assert len(found) == 4 and np.isfinite(found).all() and min(found) >= 0 < min(found[1], found[3])
    assert module._is_sound(list(found))


# the file


def _file():
    return module._file()


@pytest.fixture
def forgetful():
    """What another process would know: nothing but the file."""
    module._costs.cache_clear()
    yield module._costs.cache_clear
    module._costs.cache_clear()


LAYER = Layer("float32", 128, 128)


def test_another_process_finds_what_was_measured(costs, forgetful):
    measured = costs(FROM_3_4, FROM_1_2)
    first = break_even(LAYER)
    forgetful()
    assert break_even(LAYER) == first and len(measured) == 1
    assert json.loads(_file().read_bytes()) == {"float32 128x128": [0.0, 4.0, 0.0, 2.0]}
    break_even(Layer("int8", 128, 128))
    assert len(json.loads(_file().read_bytes())) == 2
    assert [path.name for path in _file().parent.iterdir()] == [_file().name]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"[1, 2]", b"null", b"[" * 100_000, b'{"float32 128x128": null}',
        b'{"float32 128x128": [0, 1, 0]}', b'{"float32 128x128": [0, 1, 0, 0]}', b'{"float32 128x128": [0, -1, 0, 1]}',
        b'{"float32 128x128": [0, NaN, 0, 1]}', b'{"float32 128x128": [0, Infinity, 0, 1]}',
        b'{"float32 128x128": ["0", 1, 0, 1]}', b'{"float32 128x128": [true, 1, 0, 1]}',
        b'{"float32 128x128": [0, 1' + b"0" * 400 + b', 0, 1]}',
    ],
)  # fmt: skip
def test_a_broken_file_is_measured_anew(costs, forgetful, content):
    measured = costs(FROM_3_4)
    _file().parent.mkdir(parents=True)
    _file().write_bytes(content)
    assert break_even(LAYER)[0] == BreakEven(0.0, 4.0, 1) and len(measured) == 1
    forgetful()
    break_even(LAYER)
    assert len(measured) == 1


def test_sound_lines_of_a_damaged_file_are_kept(costs, forgetful):
    costs(FROM_3_4)
    _file().parent.mkdir(parents=True)
    _file().write_text('{"float16 64x64": [0.5, 3, 0.25, 2], "float32 128x128": 7}')
    break_even(LAYER)
    assert json.loads(_file().read_bytes()) == {
        "float16 64x64": [0.5, 3.0, 0.25, 2.0],
        "float32 128x128": [0.0, 4.0, 0.0, 4.0],
    }


def test_a_folder_that_cannot_be_written_costs_one_measurement_a_process(costs, forgetful, monkeypatch, tmp_path):
    measured = costs(FROM_3_4)
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "file" / "below")
    assert break_even(LAYER) == break_even(LAYER)
    assert len(measured) == 1


def test_another_cpu_has_a_file_of_its_own(costs, forgetful, monkeypatch):
    measured = costs(FROM_3_4)
    break_even(LAYER)
    here = _file()
    monkeypatch.setattr(module, "cpu_name", lambda: "another")
    break_even(LAYER)
    assert len(measured) == 2 and _file() != here
