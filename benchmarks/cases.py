"""The networks that are compared, in float32 and int8, with inputs of their own.

The networks that ship are compared with their trained weights, so that predictions mean something; the larger ones, whose
speed is all that is asked, with random weights.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.artifacts import load_weights
from mlperf_opt.data import Dataset, Split, load_data
from mlperf_opt.graph import Graph
from mlperf_opt.networks import DigitMLP, MinimalTransformer, Network, SimpleCNN
from mlperf_opt.passes import PASSES, PassContext
from mlperf_opt.resources import resource_dir
from mlperf_opt.runtimes import NUMPY

Array = NDArray[Any]

PREFILL = 32  # tokens of a sequence of the transformer
VOCABULARY = 65
TRANSFORMER = MinimalTransformer(vocabulary=VOCABULARY, context=257, layers=4, dim=128, heads=4, hidden=512)
_NETWORKS: dict[str, tuple[str, Network]] = {
    "mlp": ("DigitMLP", DigitMLP()),
    "cnn": ("SimpleCNN", SimpleCNN()),
    "lenet300": ("LeNet-300-100", DigitMLP((1, 28, 28), (784, 300, 100, 10))),
    "lenet5": ("LeNet-5", SimpleCNN((1, 28, 28), (20, 50), 5, 0, (500,))),
    "mlp1024": ("MLP-1024-1024", DigitMLP((1, 28, 28), (784, 1024, 1024, 10))),
    "transformer": ("transformer", TRANSFORMER),
}
MODELS = tuple(_NETWORKS)


@dataclass(frozen=True)
class Model:
    """A network under comparison.

    Attributes:
        name: one of `MODELS`.
        graph: in float32.
        int8: the same after ``quant``: static, a scale per channel.
        inputs: test inputs, (n, ...): what predictions are compared on, and batches are cut from.
        calibration: inputs that ranges of activations come from, (n, ...); ours and a peer's.
    """

    name: str
    graph: Graph
    int8: Graph
    inputs: Array
    calibration: Array

    def batch(self, size: int) -> Array:
        """Return ``size`` inputs, over and over again where there are fewer."""
        return np.ascontiguousarray(self.inputs[np.arange(size) % len(self.inputs)])


def title(name: str) -> str:
    """How a table calls a model."""
    return _NETWORKS[name][0]


@cache
def model(name: str) -> Model:
    """Build, train (from what ships) and quantize a network."""
    network = _NETWORKS[name][1]
    graph = network.build(name, np.random.default_rng(0))
    weights = resource_dir("models") / name / "weights.safetensors"
    if name != "transformer" and weights.exists():  # the transformer that ships is another, smaller one
        graph = load_weights(weights, graph)
    data = _sequences() if isinstance(network, MinimalTransformer) else _images(graph)
    quantized = PASSES["quant"]()(graph, PassContext(data, 0, NUMPY)).graph
    return Model(name, graph, quantized, data.test.inputs, data.calibration.inputs)


def _sequences() -> Dataset:
    """Random tokens: a random network has no text to be right about."""
    rng = np.random.default_rng(1)
    splits = [Split(tokens, tokens) for tokens in (rng.integers(0, VOCABULARY, (n, PREFILL)) for n in (8, 64, 64))]
    return Dataset("random tokens", "completion", *splits, prompt=1)


def _images(graph: Graph) -> Dataset:
    """The digits that ship; enlarged to 28x28, with an edge of two pixels, for networks that want those."""
    data = load_data("digits")
    if graph.inputs["x"].shape[-1] == 8:
        return data
    splits = {name: _enlarged(getattr(data, name)) for name in ("train", "calibration", "test")}
    return dataclasses.replace(data, **splits)


def _enlarged(split: Split) -> Split:
    large = np.repeat(np.repeat(split.inputs, 3, axis=2), 3, axis=3)
    return Split(np.pad(large, ((0, 0), (0, 0), (2, 2), (2, 2))), split.targets)
