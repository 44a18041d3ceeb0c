"""Files at both ends: tensors of one value, of one element and of none; and a network of 266,610 parameters."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from artifact_graphs import lenet

from mlperf_opt.artifacts import load_graph, save_graph
from mlperf_opt.errors import ArtifactError
from mlperf_opt.graph import Affine, Codebook, GraphBuilder, Weight, verify

TENSORS = {
    "constant": np.full((40, 30), 0.75, np.float32),
    "all zero": np.zeros((40, 30), np.float32),
    "one element": np.full((1, 1), 0.75, np.float32),
    "one zero": np.zeros((1, 1), np.float32),
    "no rows": np.zeros((0, 4), np.float32),
    "no columns": np.zeros((3, 0), np.float32),
}
# All of them can say 0 and 0.75.
KINDS = {
    "float32": Weight,
    "float16": lambda values: Weight(values.astype(np.float16)),
    "int8": lambda values: Weight(np.zeros(values.shape, np.int8), Affine(np.float32(0.25), None, 8)).encode(values),
    "2 bits a channel": lambda values: Weight(
        np.zeros(values.shape, np.int8), Affine(np.full(len(values), 0.75, np.float32), 0, 2)
    ).encode(values),
    "codebook": lambda values: Weight(np.zeros(values.shape, np.uint8), Codebook(np.array([0.0, 0.75], np.float32))).encode(
        values
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tensor", TENSORS)
def test_a_tensor_without_variety_comes_back(tensor, kind, tmp_path):
    values = TENSORS[tensor]
    build = GraphBuilder("odd")
    x = build.input("x", ("N", values.shape[1]), "float32")
    graph = build.finish(build.node("linear", "fc", x, weight=values, bias=np.zeros(len(values), np.float32)))
    graph = verify(graph.with_weights({"fc.weight": KINDS[kind](values)}))
    np.testing.assert_array_equal(graph.weights["fc.weight"].dense(), values)  # or the case says nothing
    save_graph(graph, tmp_path / "m")
    back = load_graph(tmp_path / "m").weights["fc.weight"]
    assert back.dense().shape == values.shape and back.dense().tobytes() == values.tobytes()
    assert back.values.dtype == graph.weights["fc.weight"].values.dtype


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of LeNet-300-100's size as compression leaves it, and the SHA-256 of its real values."""
    path = tmp_path_factory.mktemp("large") / "m"
    graph = lenet(1, inputs=784, hidden=(300, 100))
    assert sum(weight.values.size for weight in graph.weights.values()) == 266_610
    save_graph(graph, path)
    return path, dense_hash(graph)


def dense_hash(graph):
    digest = hashlib.sha256()
    for name in sorted(graph.weights):
        digest.update(graph.weights[name].dense().tobytes())
    return digest.hexdigest()


CODE = """
import sys, hashlib
from pathlib import Path
from mlperf_opt.artifacts import load_graph
graph = load_graph(Path(sys.argv[1]))
digest = hashlib.sha256()
for name in sorted(graph.weights):
    digest.update(graph.weights[name].dense().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_another_process_with_any_number_of_threads_decodes_the_same_bits(threads, large):
    path, expected = large
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, threads), "PYTHONHASHSEED": threads}
    found = subprocess.run(
        [sys.executable, "-c", CODE, str(path)], check=True, capture_output=True, env=environment, text=True
    )
    assert found.stdout.strip() == expected


def test_a_flipped_bit_of_a_large_file_is_refused_wherever_it_is(large, tmp_path):
    """Its ends byte by byte, and one place in every 100 bytes of what is between."""
    path, expected = large
    content, rng = bytearray(path.read_bytes()), np.random.default_rng(7)
    between = [start + int(rng.integers(100)) for start in range(300, len(content) - 400, 100)]
    places = [*range(300), *between, *range(len(content) - 300, len(content))]
    assert len(content) > 10_000 and len(places) > 650
    damaged = tmp_path / "damaged"
    for place in places:
        bit = 1 << int(rng.integers(8))
        content[place] ^= bit
        damaged.write_bytes(content)
        with pytest.raises(ArtifactError):
            load_graph(damaged)
        content[place] ^= bit
    damaged.write_bytes(content)
    assert dense_hash(load_graph(damaged)) == expected
