"""What the KV cache changes in a network that ships: python benchmarks/kv_cache_exact.py [--model chargpt] [--rows 1000].

For each number format the same test rows go through the graph without the cache as wholes, and through the graph with it
a token at a time: in one batch, and the first of them alone. Prints the largest difference of a logit at any position, the
share of positions with the same greedy token, what the graph without the cache is worth, and the change of that with the
cache: for transformer the exact match of completions, for chargpt the nats a token, on these rows, with a 95 % interval.

--positions puts another encoding beside the trained weights: such a network says nothing of worth, but its cache is exact.
"""

from __future__ import annotations

import argparse
import dataclasses

import environment

environment.fix_threads()

import numpy as np
import yaml
from numpy.typing import NDArray
from output import Parser, progress, whole

from mlperf_opt.config import model_settings
from mlperf_opt.data import Dataset, load_data
from mlperf_opt.errors import MlperfOptError
from mlperf_opt.evaluate import answers, prompts
from mlperf_opt.graph import Graph
from mlperf_opt.measure import nats_per_token
from mlperf_opt.networks import MinimalTransformer
from mlperf_opt.passes import PASSES, PassContext
from mlperf_opt.resources import resource_dir
from mlperf_opt.runtimes import NUMPY, complete, stepwise

_FORMATS = {
    "float32": None,
    "fp16": {"dtype": "fp16"},
    "int8 weight_only": {"scheme": "weight_only"},
    "int8 static": {"scheme": "static"},
    "int8 dynamic": {"scheme": "dynamic"},
}
_MODELS = ("transformer", "chargpt")
_ENCODINGS = ("learned", "sinusoidal", "rotary")


def main() -> None:
    """Run the command line."""
    words = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    words.add_argument("--model", choices=_MODELS, default="transformer")
    words.add_argument("--positions", choices=_ENCODINGS, help="default: those that it was trained with")
    words.add_argument("--rows", type=whole, default=1000, help="of the test split, as far as it goes")
    arguments = words.parse_args()
    try:
        graph, data = _shipped(arguments.model, arguments.positions)
    except MlperfOptError as error:
        words.error(str(error))
    rows = data.test.inputs[: arguments.rows]
    print(f"{graph.name}, {len(rows)} test rows of {rows.shape[1]} tokens, every position")
    metric = "nats a token" if data.task == "language" else "exact match"
    print(f"{'':>16}  {'largest difference':>18}  {'same greedy token':>17}  {metric:>12}  {'change with the cache':>21}")
    for name, settings in _FORMATS.items():
        progress(name)
        plain = graph if settings is None else PASSES["quant"](**settings)(graph, PassContext(data, 0, NUMPY)).graph
        cached = PASSES["kv_cache"]()(plain, PassContext(data, 0, NUMPY)).graph
        expected, actual = NUMPY.prepare(plain)(rows), stepwise(NUMPY.prepare(cached), rows)
        alone = stepwise(NUMPY.prepare(cached), rows[:1])
        worst = max(float(np.abs(a - e).max()) for a, e in ((actual, expected), (alone, expected[:1])))
        same = float((expected.argmax(axis=-1) == actual.argmax(axis=-1)).mean())
        before, after = (_worth(*pair, data) for pair in ((plain, expected), (cached, actual)))
        half = 1.96 * float((after - before).std(ddof=1)) / len(rows) ** 0.5 if len(rows) > 1 else float("nan")
        change = f"{float((after - before).mean()):+.5f} ±{half:.5f}"
        print(f"{name:>16}  {worst:>18.2g}  {same:>17.4f}  {before.mean():>12.4f}  {change:>21}")


def _shipped(model: str, positions: str | None) -> tuple[Graph, Dataset]:
    """Return a trained network and its data; with other positions than its own, beside the weights that were trained."""
    sizes = yaml.safe_load((resource_dir("conf") / "model" / f"{model}.yaml").read_text(encoding="utf-8"))
    del sizes["defaults"]
    settings = model_settings(sizes)
    graph, network = settings.trained(), settings.network
    assert isinstance(network, MinimalTransformer)
    if model == "transformer":
        data = load_data("reverse")
    else:
        data = load_data("text", path=None, tokenizer="char", vocabulary=0, window=network.context, prompt=1, answer=1)
    if positions not in (None, network.positions):
        other = dataclasses.replace(network, positions=positions).build(model, np.random.default_rng(0))
        graph = other.with_weights({name: weight for name, weight in graph.weights.items() if name in other.weights})
    return graph, data


def _worth(graph: Graph, logits: NDArray[np.float32], data: Dataset) -> NDArray[np.float64]:
    """Return each row's nats a token, by its logits, or whether the graph completes it right, 0 or 1."""
    split = type(data.test)(data.test.inputs[: len(logits)], data.test.targets[: len(logits)])
    if data.task == "language":
        counts = (split.targets >= 0).sum(axis=1)
        return nats_per_token(lambda _: logits, split.inputs, split.targets, len(logits)).outputs / counts
    completed = complete(NUMPY.prepare(graph), prompts(data, split), data.answer)
    return (completed == answers(data, split)).all(axis=1).astype(np.float64)


if __name__ == "__main__":
    main()
