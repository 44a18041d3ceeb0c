"""Small graphs and data sets for the tests of the passes, and what is measured on them."""

import dataclasses
import math

import numpy as np
import yaml

from mlperf_opt.config import model_settings
from mlperf_opt.data import Dataset, Split, load_data
from mlperf_opt.graph import GraphBuilder
from mlperf_opt.passes import PassContext
from mlperf_opt.resources import resource_dir
from mlperf_opt.runtimes import NUMPY, complete


class Untouchable:
    """A split that nobody may look at."""

    def __len__(self):
        raise AssertionError("a pass looked at a split that is not its business")

    inputs = targets = property(__len__)


def f32(*values):
    return np.array(values, np.float32)


def shipped(model, data_name):
    sizes = yaml.safe_load((resource_dir("conf") / "model" / f"{model}.yaml").read_text(encoding="utf-8"))
    sizes.pop("defaults", None)
    data = load_data(data_name)
    calibration = Split(data.calibration.inputs[:200], data.calibration.targets[:200])
    return model_settings(sizes).trained(), dataclasses.replace(data, calibration=calibration)


def calibration_data(inputs):
    """A data set of which only the inputs for calibration may be read."""
    split = Split(np.asarray(inputs), np.zeros(len(inputs), np.int64))
    return Dataset("tiny", "classification", Untouchable(), split, Untouchable())


def run_pass(step, graph, data, seed=0, progress=lambda _line: None):
    step.check(graph)
    return step(graph, PassContext(data, seed, NUMPY, progress))


def linear_graph(*layers):
    """Linear layers one behind the other, each (weight, bias or None), named fc1, fc2, ..."""
    build = GraphBuilder("tiny")
    x = build.input("x", ("N", layers[0][0].shape[1]), "float32")
    for place, (weight, bias) in enumerate(layers, start=1):
        x = build.node("linear", f"fc{place}", x, weight=weight, **({} if bias is None else {"bias": bias}))
    return build.finish(x)


def quality(graph, data):
    """Share of right answers on the calibration split."""
    executable, split = NUMPY.prepare(graph), data.calibration
    if data.task == "completion":
        answers = split.targets[:, data.prompt - 1 :]
        return (complete(executable, split.inputs[:, : data.prompt], answers.shape[1]) == answers).all(axis=1).mean()
    return (executable(split.inputs).argmax(axis=-1) == split.targets).mean()


def two_bytes_up(number):
    """The smallest number with 8 significant bits that is not below ``number`` > 0."""
    mantissa, exponent = math.frexp(number)
    return math.ldexp(math.ceil(mantissa * 256) / 256, exponent)


def ops(graph):
    return [node.op for node in graph.nodes]
