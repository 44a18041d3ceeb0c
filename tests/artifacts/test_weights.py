"""Plain safetensors files of named arrays, and the step from one into a network."""

import re
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy  # noqa: TID251
from artifact_graphs import float_graph, half_graph, pruned_graph, quantized_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlperf_opt.artifacts import container, is_model_file, load_arrays, load_metadata, load_weights, save_arrays, save_graph
from mlperf_opt.errors import ArtifactError
from mlperf_opt.graph import graph_hash
from mlperf_opt.networks import MinimalTransformer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.safetensors"


DTYPES = ["bool", "int8", "uint16", "int64", "float16", "float32", "float64", ">f4", ">i8"]
ARRAYS = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=5).filter(lambda name: name != "__metadata__"),
    st.sampled_from(DTYPES).flatmap(
        lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=4,
)


@settings(max_examples=100, deadline=None)
@given(ARRAYS, st.dictionaries(st.sampled_from("abc"), st.text(st.characters(codec="utf-8"), max_size=5)))
def test_arrays_and_metadata_come_back(tmp_path_factory, arrays, metadata):
    path = tmp_path_factory.getbasetemp() / "plain"
    arrays = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in arrays.items()}
    save_arrays(path, arrays, metadata)
    assert load_metadata(path) == metadata
    found = load_arrays(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    assert safetensors.numpy.load_file(path).keys() == arrays.keys()


@pytest.mark.parametrize(
    "view",
    [lambda x: x.T, lambda x: x[::2], lambda x: x[::-1], lambda x: x[:, 1:3], lambda x: np.broadcast_to(x[0], (3, 6))],
)
def test_arrays_that_are_not_contiguous_survive(view, path):
    array = view(np.arange(30, dtype=np.float32).reshape(5, 6))
    assert array.dtype == np.float32
    save_arrays(path, {"a": array}, {})
    np.testing.assert_array_equal(load_arrays(path)["a"], array, strict=True)


def test_the_same_arrays_give_the_same_bytes(path):
    arrays, metadata = {"b": np.zeros(3), "a": np.ones(2)}, {"z": "1", "a": "2", "m": "3"}
    digest = save_arrays(path, arrays, metadata)
    assert save_arrays(path, dict(reversed(arrays.items())), dict(reversed(metadata.items()))) == digest
    assert b'"__metadata__":{"a":"2","m":"3","z":"1"}' in path.read_bytes()


def test_bfloat16_of_other_programs_is_read_as_float32(path):
    header = b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + np.array([0x3FC0, 0xC000], "<u2").tobytes())
    np.testing.assert_array_equal(load_arrays(path)["a"], np.array([1.5, -2], np.float32), strict=True)


def test_what_a_file_cannot_hold_is_named(path):
    for arrays, metadata, words in (
        ({"a": np.zeros(2, complex)}, {}, "tensor 'a': a file can't hold the dtype complex128"),
        ({"a": np.array(["x"])}, {}, "can't hold the dtype <U1"),
        ({"__metadata__": np.zeros(2)}, {}, "'__metadata__' can't be the name of a tensor"),
        ({"\ud800": np.zeros(2)}, {}, "safetensors refuses the tensors"),
        ({}, {"format": "mlperf_opt"}, "the metadata mlperf_opt is kept for model files"),
    ):
        with pytest.raises(ArtifactError, match=words):
            save_arrays(path, arrays, metadata)
    path.write_bytes(b"junk")
    for read in (load_arrays, load_metadata, is_model_file, lambda p: load_weights(p, float_graph())):
        with pytest.raises(ArtifactError, match=f"{path}: no safetensors file"):
            read(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_array_that_is_lost_in_writing_is_caught(path, monkeypatch):
    """What safetensors 0.8.0 does to an array that is not contiguous."""
    monkeypatch.setattr(container.np, "ascontiguousarray", np.zeros_like)
    with pytest.raises(ArtifactError, match=r"what was written does not read back .it holds other arrays"):
        save_arrays(path, {"a": np.ones(3)}, {})
    assert not path.exists()


# into a network


def dense(graph):
    return {name: weight.dense() for name, weight in graph.parameters().items()}


def test_weights_come_from_a_model_file_and_from_plain_tensors(path):
    source, network = float_graph(seed=1), float_graph(seed=2)
    save_graph(source, path)
    assert is_model_file(path)
    assert graph_hash(load_weights(path, network)) == graph_hash(source)
    save_arrays(path, dense(source), {"format": "pt"})
    assert not is_model_file(path)
    assert graph_hash(load_weights(path, network)) == graph_hash(source)
    save_arrays(path, {name: a.astype(np.float64) for name, a in dense(source).items()}, {})
    assert graph_hash(load_weights(path, network)) == graph_hash(source)


def test_pruned_and_half_precision_files_are_float_files(path):
    for source in (pruned_graph(seed=3), half_graph()):
        save_graph(source, path)
        loaded = load_weights(path, float_graph(seed=2))
        for name, weight in source.weights.items():
            np.testing.assert_array_equal(loaded.weights[name].values, weight.dense(), strict=True)


def test_a_quantized_file_is_refused(path):
    save_graph(quantized_graph(), path)
    with pytest.raises(ArtifactError, match=f"{path}: a quantized model, whose codes can't be loaded into a float network"):
        load_weights(path, float_graph())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda a: {k.replace("fc1.w", "fc.1.w"): v for k, v in a.items()},
            r"lacks 1 .*: 'fc1.weight' \(the file has 'fc.1.weight'\)$",
        ),
        (lambda a: {}, "lacks 4 of the network's weights: 'fc1.bias', 'fc1.weight', 'fc2.bias', ...$"),
        (lambda a: a | {"bn.count": np.zeros(1)}, "has 1 tensors that the network doesn't know: 'bn.count'$"),
        (lambda a: a | {"fc1.bias": np.zeros(7)}, r"'fc1.bias' has the shape \(7,\); the network needs \(6,\)"),
        (lambda a: a | {"fc1.bias": np.zeros(6, np.int8)}, "'fc1.bias' is int8; weights must be float"),
        (lambda a: a | {"fc1.bias": np.full(6, np.nan)}, "'fc1.bias' holds a value that is not finite"),
        (lambda a: a | {"fc1.bias": np.full(6, 1e300)}, "'fc1.bias' holds a value that is not finite"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, words, path):
    save_arrays(path, change(dense(float_graph())), {})
    with pytest.raises(ArtifactError, match=words) as caught:
        load_weights(path, float_graph())
    assert str(caught.value).startswith(f"{path}: ")


def test_the_tokenizer_of_a_model_file_comes_along(path):
    tokenizer = {"kind": "char", "symbols": "".join(chr(97 + i) for i in range(_outputs(float_graph(seed=1))))}
    save_graph(replace(float_graph(seed=1), tokenizer=tokenizer), path)
    loaded = load_weights(path, float_graph(seed=2))
    assert loaded.tokenizer == tokenizer
    save_graph(float_graph(seed=1), path)
    assert load_weights(path, loaded).tokenizer is None, "of the file, not of the network that it fills"


def _outputs(graph):
    return graph.specs[graph.outputs[0]].shape[-1]


@pytest.mark.parametrize(
    "made, wanted, words",
    [
        ({}, {"heads": 4}, "layer1.attention was trained with heads=2; the network has heads=4"),
        (
            {"positions": "rotary"},
            {"positions": "rotary", "heads": 1},
            "layer1.attention was trained with heads=2; the network has heads=1",
        ),
        ({"positions": "rotary"}, {}, "it was trained with rotary positions; the network has sinusoidal positions"),
        ({}, {"positions": "rotary"}, "it was trained with sinusoidal positions; the network has rotary positions"),
        ({}, {"context": 99}, None),
        ({"context": 99}, {}, None),
    ],
)
def test_what_weights_do_not_show_must_fit_too(made, wanted, words, path):
    """The same tensors, used in another way, would write nonsense."""
    sizes = {"vocabulary": 5, "context": 6, "layers": 1, "dim": 8, "heads": 2, "hidden": 4, "positions": "sinusoidal"}
    source, network = (
        MinimalTransformer(**sizes | changed).build("m", np.random.default_rng(0)) for changed in (made, wanted)
    )
    save_graph(source, path)
    if words is None:
        assert load_weights(path, network).nodes == network.nodes
    else:
        with pytest.raises(ArtifactError, match=re.escape(words)):
            load_weights(path, network)
