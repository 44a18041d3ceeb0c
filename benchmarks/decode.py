"""A transformer writes tokens with its cache: ours, onnxruntime, PyTorch: python benchmarks/decode.py [--tokens 256].

4 layers, 128 wide, 4 heads, random weights, greedy, from a prompt of one token. All take turns in one process, on one
thread, a whole generation each; a figure is the median of the ratios of one round, with a 95 % bootstrap interval.
onnxruntime runs our export, whose past goes in and comes out; PyTorch an eager module on caches that are allocated once.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import environment

environment.fix_threads()

import numpy as np
from cases import TRANSFORMER, VOCABULARY
from numpy.typing import NDArray
from output import conditions, keep, parser, progress, show, system_facts, whole
from peers import installed
from targets import Target, figure, target_grid
from windows import CLOCKS, Clock, summarize

from mlperf_opt.data import Split, load_data
from mlperf_opt.graph import Graph
from mlperf_opt.measure import fix_threads
from mlperf_opt.networks import MinimalTransformer
from mlperf_opt.passes import PASSES, PassContext
from mlperf_opt.report.grid import Grid, build_grid
from mlperf_opt.runtimes import COMPILED, NUMPY, ONNX, Runtime, continuations

Array = NDArray[Any]
Generate = Callable[[int], Iterator[int]]  # how many tokens -> the tokens, each as soon as it is known
_TOKENS, _SECONDS, _SHORT_SECONDS = 256, 15.0, 4.0
_LAST = 8  # tokens at the end that stand for "one token at the last position"
_LEAST_ROUNDS = 5
_FORMATS: dict[str, dict[str, str]] = {
    "int8": {},
    "weight-only": {"scheme": "weight_only"},
    "fp16": {"dtype": "fp16"},
}
_NOTES = (
    "ours: compiled; int8: static; vs: how many times faster; same: share of tokens equal to the numpy runtime's.",
    f"a token: the median of the last {_LAST}; ort: through runtime=onnx, which takes the past in and out.",
)
NUMPY_NAME, TORCH_NAME = "numpy fp32", "torch fp32"


def main() -> int:
    """Run the command line."""
    words = parser(__doc__)
    words.add_argument("--tokens", type=whole, default=_TOKENS, metavar="N", help=f"to generate (default {_TOKENS})")
    arguments = words.parse_args()
    if arguments.tokens <= _LAST:
        words.error(f"--tokens {arguments.tokens}: expected more than {_LAST}")
    seconds = arguments.seconds or (_SHORT_SECONDS if arguments.short else _SECONDS)
    with fix_threads(1):
        progress("quantizing and compiling")
        subjects = _subjects(arguments.tokens)
        times, equal = _measure(subjects, arguments.tokens, seconds, CLOCKS[arguments.clock])
    system = system_facts()
    results = _results(times, equal)
    targets = checks(results)
    title = f"One token at position {arguments.tokens}, and all {arguments.tokens} tokens; batch 1, one thread"
    tables = [(title, _grid(results)), ("Promised", target_grid(targets))]
    show(system, tables, [*_NOTES, *conditions(system, arguments.clock)], as_markdown=arguments.markdown)
    keep(arguments.json, system, {"results": results, "targets": [vars(t) | {"verdict": t.verdict} for t in targets]})
    return 0


def network(tokens: int) -> MinimalTransformer:
    """The transformer of the comparisons, with room for the tokens."""
    return dataclasses.replace(TRANSFORMER, context=tokens + 1)


@dataclass(frozen=True)
class Subject:
    """Somebody who writes tokens, and the numpy runtime on the same graph, which says what is to be written."""

    generate: Generate
    definition: Generate


def _subjects(tokens: int) -> dict[str, Subject]:
    """Everybody who writes, numpy first."""
    plain = network(tokens).build("transformer", np.random.default_rng(0))
    random = np.random.default_rng(1).integers(0, VOCABULARY, (64, min(64, tokens)))
    split = Split(random, random)
    data = dataclasses.replace(load_data("reverse"), train=split, calibration=split, test=split)
    context = PassContext(data, 0, NUMPY)

    def cached(graph: Graph) -> Graph:
        return PASSES["kv_cache"]()(graph, context).graph

    quantized = {name: PASSES["quant"](**settings)(plain, context).graph for name, settings in _FORMATS.items()}
    graphs = {name: cached(graph) for name, graph in {"fp32": plain, **quantized}.items()}
    defined = {name: _ours(NUMPY, graph) for name, graph in graphs.items()}
    subjects = {NUMPY_NAME: Subject(defined["fp32"], defined["fp32"])}
    subjects |= {f"ours {name}": Subject(_ours(COMPILED, graph), defined[name]) for name, graph in graphs.items()}
    if "onnxruntime" in installed():
        for name in ("fp32", "int8"):
            subjects[f"ort {name}"] = Subject(_ours(ONNX, graphs[name]), defined[name])
    if "torch" in installed():
        subjects[TORCH_NAME] = Subject(_torch(plain, tokens), defined["fp32"])
    return subjects


def _ours(runtime: Runtime, graph: Graph) -> Generate:
    executable = runtime.prepare(graph)
    prompt = np.zeros((1, 1), np.int64)
    return lambda count: (int(token[0]) for token in continuations(executable, prompt, count))


def _torch(graph: Graph, tokens: int) -> Generate:
    import torch
    import torch_modules

    torch.set_num_threads(1)
    module = torch_modules.module_of(graph)
    assert isinstance(module, torch_modules.Transformer)
    caches = module.caches(tokens)

    def generate(count: int) -> Iterator[int]:
        token = torch.zeros(1, 1, dtype=torch.int64)
        for place in range(count):
            with torch.inference_mode():
                token = module(token, caches, place).argmax(dim=-1)
            yield int(token)

    return generate


def _measure(
    subjects: dict[str, Subject], tokens: int, seconds: float, clock: Clock
) -> tuple[dict[str, list[Array]], dict[str, float]]:
    """Return the seconds of every token, a list of rounds each, and the share of tokens that are as the definition's."""
    times: dict[str, list[Array]] = {name: [] for name in subjects}
    equal = {}
    for name, subject in subjects.items():
        progress(f"warming up: {name}")
        written, wanted = (list(generate(tokens)) for generate in (subject.generate, subject.definition))
        equal[name] = float(np.mean(np.array(written) == np.array(wanted)))
    end = clock() + seconds
    turn = 0
    while turn < _LEAST_ROUNDS or clock() < end:
        progress(f"round {turn + 1}")
        names = list(subjects) if turn % 2 == 0 else list(reversed(subjects))
        for name in names:
            spent, before = np.empty(tokens), clock()
            for place, _ in enumerate(subjects[name].generate(tokens)):
                now = clock()
                spent[place], before = now - before, now
            times[name].append(spent)
        turn += 1
    return times, equal


def _results(times: dict[str, list[Array]], equal: dict[str, float]) -> list[dict[str, Any]]:
    """One row a subject: its times, and how many times faster it is than numpy's and PyTorch's cached decode."""
    last = {name: [float(np.median(spent[-_LAST:])) for spent in rounds] for name, rounds in times.items()}
    all_ = {name: [float(spent.sum()) for spent in rounds] for name, rounds in times.items()}
    rows = []
    for name in times:
        row: dict[str, Any] = {
            "subject": name,
            "token_us": float(np.median(last[name])) * 1e6,
            "generation_ms": float(np.median(all_[name])) * 1e3,
            "same_tokens": equal[name],
        }
        for against in (NUMPY_NAME, TORCH_NAME):
            if against in times and against != name:
                row[f"token against {against}"] = asdict(summarize(last[name], last[against]))
                row[f"generation against {against}"] = asdict(summarize(all_[name], all_[against]))
        rows.append(row)
    return rows


def _grid(results: Sequence[dict[str, Any]]) -> Grid:
    rows = []
    for result in results:
        row = {"": result["subject"], "token us": f"{result['token_us']:.0f}", "all ms": f"{result['generation_ms']:.1f}"}
        for against in (NUMPY_NAME, TORCH_NAME):
            for what in ("token", "generation"):
                label = {"token": "token", "generation": "all"}[what]
                row[f"{label}, vs {against.split()[0]}"] = _cell(result.get(f"{what} against {against}"))
        row["same"] = f"{result['same_tokens']:.3f}"
        rows.append(row)
    return build_grid(rows, left=("",))


def _cell(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{figure(found['ratio'])} ±{(found['high'] - found['low']) / 2:.1f}"


def checks(results: Sequence[dict[str, Any]]) -> list[Target]:
    """The promises that these results speak of."""
    row = next(r for r in results if r["subject"] == "ours int8")
    targets = []
    for against, words, wanted in (
        (TORCH_NAME, "PyTorch's eager cached decode", 10),
        (NUMPY_NAME, "our numpy cached decode", 4),
    ):
        for what, unit in (("token", "a token at the last position"), ("generation", "the whole generation")):
            found = row.get(f"{what} against {against}")
            targets.append(Target(f"int8 against {words}, {unit}", wanted, found and found["ratio"]))
    for result in results:
        if result["subject"] in ("ours fp32", "ours int8", TORCH_NAME):
            targets.append(
                Target(f"tokens equal to the numpy runtime's, {result['subject']}", 100, 100 * result["same_tokens"], "%")
            )
    return targets


if __name__ == "__main__":
    sys.exit(main())
