"""The three families: sizes and work counted by hand, what they compute written out again, what a size may be."""

import math

import network_oracles as oracles
import numpy as np
import pytest

from mlperf_opt.errors import ConfigError, GraphError
from mlperf_opt.graph import Weight, graph_hash, verify
from mlperf_opt.networks import FAMILIES, DigitMLP, MinimalTransformer, SimpleCNN
from mlperf_opt.runtimes import NUMPY

LENET_300_100 = DigitMLP(image=(1, 28, 28), sizes=(784, 300, 100, 10))
LENET_5 = SimpleCNN(image=(1, 28, 28), channels=(20, 50), kernel=5, padding=0, hidden=(500,))

# Parameters layer by layer (weights + biases), multiply-accumulates layer by layer, for one sample of `length` tokens.
COUNTED = {
    "DigitMLP": (DigitMLP(), (64 * 32 + 32) + (32 * 10 + 10), 64 * 32 + 32 * 10),
    "LeNet-300-100": (LENET_300_100, 235_500 + 30_100 + 1_010, 784 * 300 + 300 * 100 + 100 * 10),
    "SimpleCNN": (
        SimpleCNN(),
        (4 * 9 + 4) + (8 * 4 * 9 + 8) + (32 * 10 + 10),
        8 * 8 * 4 * 9 + 4 * 4 * 8 * 36 + 32 * 10,
    ),
    "LeNet-5 of Caffe": (
        LENET_5,
        (20 * 25 + 20) + (50 * 20 * 25 + 50) + (800 * 500 + 500) + (500 * 10 + 10),
        24 * 24 * 20 * 25 + 8 * 8 * 50 * 500 + 800 * 500 + 500 * 10,
    ),
}


def count(graph):
    return sum(weight.values.size for weight in graph.parameters().values())


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_and_work_counted_by_hand(name):
    network, parameters, macs = COUNTED[name]
    graph = network.build("net", np.random.default_rng(0))
    assert count(graph) == parameters
    assert graph.macs({"N": 1}) == macs and graph.macs({"N": 7}) == 7 * macs


def test_the_two_sizes_that_are_promised():
    """The issue's own figures, and Caffe's published 431 thousand."""
    mlp, cnn, lenet = (n.build("net", np.random.default_rng(0)) for n in (DigitMLP(), SimpleCNN(), LENET_5))
    assert (count(mlp), 2 * mlp.macs({"N": 1})) == (2410, 4736)
    assert (count(cnn), 2 * cnn.macs({"N": 1})) == (666, 14464)
    assert count(lenet) == 431_080


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("length", [1, 5])
def test_a_transformer_counted_by_hand(positions, length):
    """V=11, context 6, 3 layers, D=8, 2 heads, hidden 20."""
    network = MinimalTransformer(11, 6, 3, 8, 2, 20, positions)
    graph = network.build("net", np.random.default_rng(0))
    layer = 2 * (8 + 8) + 4 * (8 * 8 + 8) + (20 * 8 + 20) + (8 * 20 + 8)  # two norms, four projections, up, down
    assert count(graph) == 11 * 8 + (6 * 8 if positions == "learned" else 0) + 3 * layer + (8 + 8) + (11 * 8 + 11)
    products = 3 * (4 * 8 * 8 + 2 * 20 * 8) + 11 * 8  # for each place
    looks = 3 * 2 * length * length * 8  # q k^T and weights v, each T x T x D over all heads
    assert graph.macs({"N": 1, "T": length}) == length * products + looks


def test_shared_heads_and_a_tied_table_counted_by_hand():
    """As above, with one head of keys and values for both of the queries', and the embedding's table for the logits."""
    graph = MinimalTransformer(11, 6, 3, 8, 2, 20, kv_heads=1, tied=True).build("net", np.random.default_rng(0))
    layer = 2 * (8 + 8) + 2 * (8 * 8 + 8) + 2 * (4 * 8 + 4) + (20 * 8 + 20) + (8 * 20 + 8)
    assert count(graph) == 11 * 8 + 6 * 8 + 3 * layer + (8 + 8) + 11
    products = 3 * (2 * 8 * 8 + 2 * 4 * 8 + 2 * 20 * 8) + 11 * 8
    assert graph.macs({"N": 1, "T": 5}) == 5 * products + 3 * 2 * 5 * 5 * 8
    assert graph.readers("embed.table") == ["embed", "logits"]


@pytest.mark.parametrize(
    "network", [DigitMLP(), DigitMLP((2, 3, 2), (12, 5)), DigitMLP((1, 2, 2), (4, 6, 5, 3))], ids=lambda n: str(n.sizes)
)
def test_an_mlp_is_products_with_relu_between(network, rng):
    graph = network.build("net", rng)
    images = rng.standard_normal((4, *network.image)).astype(np.float32)
    expected = [oracles.mlp(graph, image) for image in images]
    np.testing.assert_allclose(NUMPY.prepare(graph)(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "network",
    [SimpleCNN(), SimpleCNN((2, 12, 11), (3, 2), 3, 0, (5,), 4), SimpleCNN((1, 6, 6), (2,), 5, 2, (4, 3), 2)],
    ids=lambda n: str(n.image),
)
def test_a_cnn_is_blocks_and_products(network, rng):
    graph = network.build("net", rng)
    images = rng.standard_normal((3, *network.image)).astype(np.float32)
    expected = [oracles.cnn(graph, image, len(network.channels), network.padding) for image in images]
    np.testing.assert_allclose(NUMPY.prepare(graph)(images), expected, rtol=1e-4, atol=1e-5)


def transformer(rng, **sizes):
    """Grown weights and biases that are not zero: attention is far from uniform, nothing cancels out."""
    network = MinimalTransformer(**{"vocabulary": 9, "context": 7, "layers": 2, "dim": 8, "heads": 2, "hidden": 12, **sizes})
    graph = network.build("net", rng)
    noise = {n: rng.standard_normal(w.values.shape).astype(np.float32) * 0.4 for n, w in graph.weights.items()}
    return graph.with_weights({n: Weight(w.values + noise[n]) for n, w in graph.weights.items()})


@pytest.mark.parametrize(
    "positions, layers, heads, sizes",
    [
        *((positions, *sizes, {}) for positions in ("learned", "sinusoidal") for sizes in ((1, 1), (2, 2), (1, 4), (3, 8))),
        *(("rotary", *sizes, {}) for sizes in ((1, 1), (2, 2), (1, 4))),
        ("learned", 2, 4, {"kv_heads": 2}),
        ("rotary", 1, 4, {"kv_heads": 1, "tied": True}),
        ("sinusoidal", 1, 2, {"tied": True}),
    ],
)
def test_a_transformer_is_what_the_papers_say(positions, layers, heads, sizes, rng):
    graph = transformer(rng, layers=layers, heads=heads, positions=positions, **sizes)
    tokens = rng.integers(0, 9, (3, 7))
    expected = [oracles.transformer(graph, row, layers, heads, positions) for row in tokens]
    np.testing.assert_allclose(NUMPY.prepare(graph)(tokens), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_a_token_changes_its_own_place_and_later_ones_and_no_earlier(positions, place, rng):
    executable = NUMPY.prepare(transformer(rng, positions=positions))
    tokens = rng.integers(0, 9, (2, 7))
    other = tokens.copy()
    other[:, place] = (other[:, place] + 4) % 9
    before, after = executable(tokens), executable(other)
    np.testing.assert_array_equal(before[:, :place], after[:, :place])
    assert (np.abs(before - after)[:, place:].max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_a_place_matters_where_the_tokens_are_the_same(positions, rng):
    """Equal tokens, so equal values to attend to: without positions all places would give the same logits."""
    logits = NUMPY.prepare(transformer(rng, positions=positions))(np.full((1, 7), 3))[0]
    gaps = [np.abs(logits[i] - logits[j]).max() for i in range(7) for j in range(i)]
    assert min(gaps) > 1e-3


def test_the_order_of_earlier_tokens_matters(rng):
    executable = NUMPY.prepare(transformer(rng))
    first, second = (executable(np.array([row]))[0, -1] for row in ([1, 2, 3, 4, 5], [4, 2, 3, 1, 5]))
    assert np.abs(first - second).max() > 1e-3


def test_without_its_branches_a_residual_stream_passes_through(rng):
    """Projections of zero: what is left is the embedding and the place, normed once."""
    graph = transformer(rng, layers=3)
    silent = {n: Weight(np.zeros_like(w.values)) for n, w in graph.weights.items() if ".project." in n or ".down." in n}
    assert len(silent) == 12
    graph = graph.with_weights(silent)
    tokens = rng.integers(0, 9, (2, 7))
    expected = [oracles.transformer(graph, row, 0, 1, "learned") for row in tokens]
    np.testing.assert_allclose(NUMPY.prepare(graph)(tokens), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_more_tokens_than_places_are_refused(positions, rng):
    executable = NUMPY.prepare(transformer(rng, positions=positions))
    with pytest.raises(GraphError, match="8 tokens, but the model knows 7 places"):
        executable(np.zeros((1, 8), np.int64))


@pytest.mark.parametrize("token", [-1, 9, -(2**40)])
def test_a_token_that_does_not_exist_is_refused(token, rng):
    with pytest.raises(GraphError, match=r"token ids must be 0\.\.8"):
        NUMPY.prepare(transformer(rng))(np.array([[1, token]]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides_and_biases_start_at_zero(family):
    build = FAMILIES[family]().build
    one, again, other = (build("net", np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert graph_hash(one) == graph_hash(again) != graph_hash(other)
    for name, weight in verify(one).weights.items():
        constant = {"bias": 0, "beta": 0, "gamma": 1}.get(name.rsplit(".")[-1])
        assert weight.values.dtype == np.float32
        assert (weight.values == constant).all() if constant is not None else weight.values.std() > 0, name


def test_weights_before_a_relu_start_with_the_variance_of_he():
    """2 / fan-in, from 120,000 and 25,000 draws: a relative error of at most 2 and 5 %."""
    mlp, cnn = (network.build("net", np.random.default_rng(0)).weights for network in (LENET_300_100, LENET_5))
    assert mlp["fc1.weight"].values.var() == pytest.approx(2 / 784, rel=0.02)
    assert cnn["conv2.weight"].values.var() == pytest.approx(2 / (20 * 25), rel=0.05)


def test_a_residual_branch_starts_smaller_with_more_layers():
    """By sqrt(2 layers), GPT-2's rule, so that the sum of all branches has the same spread."""
    spreads = []
    for layers in (1, 4):
        weights = MinimalTransformer(layers=layers, dim=128).build("net", np.random.default_rng(0)).weights
        spreads.append(weights["layer1.project.weight"].values.std())
        assert weights["layer1.query.weight"].values.std() == pytest.approx(1 / math.sqrt(128), rel=0.03)
    assert spreads[0] / spreads[1] == pytest.approx(2, rel=0.03)


WRONG = [
    (DigitMLP, {"image": (0, 8, 8)}, "image=(0, 8, 8): expected three whole numbers >= 1"),
    (DigitMLP, {"sizes": (64,)}, "sizes=(64,): expected two or more whole numbers >= 1"),
    (DigitMLP, {"sizes": ()}, "sizes=(): expected two or more"),
    (DigitMLP, {"sizes": (64, 0, 10)}, "sizes=(64, 0, 10): expected two or more whole numbers >= 1"),
    (DigitMLP, {"sizes": (63, 10)}, "a first size of 64, the pixels of image=(1, 8, 8)"),
    (SimpleCNN, {"image": (1, -8, 8)}, "image=(1, -8, 8): expected"),
    (SimpleCNN, {"channels": ()}, "channels=(): expected whole numbers >= 1"),
    (SimpleCNN, {"channels": (4, 0)}, "channels=(4, 0): expected"),
    (SimpleCNN, {"kernel": 0}, "kernel=0: expected a whole number >= 1"),
    (SimpleCNN, {"padding": 3}, "padding=3: expected 0 to 2, less than the kernel"),
    (SimpleCNN, {"padding": -1}, "padding=-1: expected 0 to 2"),
    (SimpleCNN, {"hidden": (0,)}, "hidden=(0,): expected"),
    (SimpleCNN, {"classes": 1}, "classes=1: expected at least 2"),
    (MinimalTransformer, {"dim": 0}, "dim=0: expected a whole number >= 1"),
    (MinimalTransformer, {"layers": 0}, "layers=0: expected"),
    (MinimalTransformer, {"context": -1}, "context=-1: expected"),
    (MinimalTransformer, {"heads": 3}, "heads=3: expected a divisor of dim=32"),
    (MinimalTransformer, {"heads": 4, "kv_heads": 3}, "kv_heads=3: expected a divisor of heads=4"),
    (MinimalTransformer, {"heads": 4, "kv_heads": 8}, "kv_heads=8: expected a divisor of heads=4"),
    (MinimalTransformer, {"kv_heads": 0}, "kv_heads=0: expected a divisor of heads=2"),
    (MinimalTransformer, {"heads": 32, "positions": "rotary"}, "positions=rotary: expected an even number of dim=32"),
]


@pytest.mark.parametrize("family, sizes, text", WRONG, ids=[f"{f.__name__} {s}" for f, s, _ in WRONG])
def test_sizes_that_make_no_network_are_refused(family, sizes, text):
    with pytest.raises(ConfigError) as caught:
        family(**sizes)
    assert text in str(caught.value)


def test_blocks_that_leave_no_pixel_are_refused():
    with pytest.raises(ConfigError, match="more pixels: block 4 has none left"):
        SimpleCNN(channels=(2, 2, 2, 2)).build("net", np.random.default_rng(0))
