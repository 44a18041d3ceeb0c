"""What the tests of training compare with: a plain evaluator, cross-entropy by hand, and small data."""

import math

import numpy as np

from mlperf_opt.data import Dataset, Split
from mlperf_opt.graph import split_name


def evaluate(graph, weights, inputs):
    """Return the graph's output, node by node, every weight taken from ``weights``."""
    values = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        feeds = [values[n] if n in values else weights[split_name(n)[0]] if n else None for n in node.inputs]
        values[node.output] = node.definition.forward(*feeds, **node.attributes)
    return values[graph.outputs[0]]


def mean_cross_entropy(logits, targets):
    """Return the mean of log(sum(exp(row - row[target]))) over the targets >= 0, in Python floats."""
    rows = np.asarray(logits, np.float64).reshape(-1, logits.shape[-1])
    losses = []
    for row, target in zip(rows, np.ravel(targets), strict=True):
        if target >= 0:
            largest = max(row)
            losses.append(math.log(sum(math.exp(x - largest) for x in row)) + largest - row[target])
    return sum(losses) / len(losses)


def central_differences(function, array, step=1e-6):
    """Return the gradient of ``function()`` with respect to ``array``, which it reads, entry by entry."""
    found = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        kept = array[place]
        array[place] = kept + step
        above = function()
        array[place] = kept - step
        found[place] = (above - function()) / (2 * step)
        array[place] = kept
    return found


def points(rows=60, seed=0, name="points"):
    """Return three clouds in the plane, 2 apart and 0.3 wide: (N, 2) with the class of each; all splits alike."""
    rng = np.random.default_rng(seed)
    targets = np.arange(rows) % 3
    centres = np.array([[0, 0], [2, 0], [0, 2]], np.float32)
    inputs = (centres[targets] + 0.3 * rng.standard_normal((rows, 2))).astype(np.float32)
    split = Split(inputs, targets)
    return Dataset(name, "classification", split, split, split)
