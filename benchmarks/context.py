"""Time for a token against the tokens before it: python benchmarks/context.py [--csv PATH], then --draw PATH IMAGE.

4 layers, 128 wide, 4 heads, random weights, batch 1, one thread: without a cache and with caches of every kind, in both
runtimes, and PyTorch's eager module with its cache (where it is installed). All take turns in one process; a figure is the
median over rounds, a ratio that of one round, with a 95 % bootstrap interval. The window of 252 tokens and 4 sinks runs on
rotary positions, all else on learned ones.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import environment

environment.fix_threads()

import numpy as np
from cases import TRANSFORMER, VOCABULARY
from curves import IMAGES, draw
from numpy.typing import NDArray
from output import conditions, keep, parser, progress, show, system_facts, writable
from peers import installed
from targets import Target, digits, target_grid
from windows import CLOCKS, Clock, summarize

from mlperf_opt.data import Split, load_data
from mlperf_opt.graph import Graph
from mlperf_opt.measure import fix_threads
from mlperf_opt.passes import PASSES, PassContext
from mlperf_opt.report.grid import Grid, build_grid
from mlperf_opt.runtimes import COMPILED, NUMPY, Executable, complete

Array = NDArray[Any]
Call = Callable[[], Any]

CONTEXTS = (32, 64, 128, 256, 512, 1024)
_TOKENS = 256  # of a whole generation, and of a prompt
_SECONDS, _SHORT_SECONDS, _LEAST_ROUNDS = 60.0, 10.0, 5
_WINDOW_SECONDS = 10e-3  # calls between two readings of the clock
_WINDOW, _SINKS = 252, 4
_TORCH = "torch fp32"
_PROMPTED = ("numpy", "compiled")
_PROMPT = np.random.default_rng(2).integers(0, VOCABULARY, (1, CONTEXTS[-1]))


@dataclass(frozen=True)
class Subject:
    """Somebody who writes tokens.

    Attributes:
        at: tokens in sight, the new one included -> the call that writes one, again and again.
        generate: how many -> the tokens after a prompt of one.
        executable: of ours with a cache.
    """

    at: Callable[[int], Call]
    generate: Callable[[int], Array]
    executable: Executable | None = None


def main() -> int:
    """Run the command line."""
    words = parser(__doc__)
    words.add_argument("--csv", type=writable, metavar="PATH", help="keep the times: subject, context, us")
    words.add_argument("--draw", nargs=2, type=Path, metavar=("CSV", "IMAGE"), help="draw kept times, and measure nothing")
    arguments = words.parse_args()
    if arguments.draw:
        source, image = arguments.draw
        if not source.is_file():
            words.error(f"{source}: no such file")
        if image.suffix not in IMAGES:
            words.error(f"{image}: expected an image as {', '.join(IMAGES[:-1])} or {IMAGES[-1]}")
        if find_spec("matplotlib") is None:
            words.error("--draw needs matplotlib: pip install 'mlperf-opt[report]'")
        draw(source, image)
        return 0
    clock = CLOCKS[arguments.clock]
    with fix_threads(1):
        progress("quantizing and compiling")
        subjects = _subjects()
        steps = _steps(subjects, arguments.seconds or (_SHORT_SECONDS if arguments.short else _SECONDS), clock)
        whole = _generations(subjects, clock)
        ahead = {who: _prefill(subjects[f"{who}, cache"], clock) for who in _PROMPTED}
    system = system_facts()
    bytes_ = {name: s.executable.start(1, CONTEXTS[-1]).state_bytes for name, s in subjects.items() if s.executable}
    targets = checks(steps, whole, ahead, bytes_)
    notes = [f"KV bytes at {CONTEXTS[-1]} tokens; the window: rotary positions, and full in every column"]
    tables = [("Microseconds for one token, by the tokens in sight", _grid(steps, bytes_))]
    tables += [(f"{_TOKENS} tokens, ms", _whole_grid(whole)), ("Promised", target_grid(targets))]
    show(system, tables, [*notes, *conditions(system, arguments.clock)], as_markdown=arguments.markdown)
    figures = {name: {str(c): float(np.median(t)) * 1e6 for c, t in times.items()} for name, times in steps.items()}
    keep(arguments.json, system, {"token_us": figures, "targets": [vars(t) | {"verdict": t.verdict} for t in targets]})
    if arguments.csv:
        with arguments.csv.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(("subject", "context", "token_us"))
            rows.writerows((name, c, f"{us:.1f}") for name, times in figures.items() for c, us in times.items())
    return 0


def _subjects() -> dict[str, Subject]:
    learned, rotary = (
        dataclasses.replace(TRANSFORMER, context=CONTEXTS[-1], positions=positions).build(
            "transformer", np.random.default_rng(0)
        )
        for positions in ("learned", "rotary")
    )
    random = np.random.default_rng(1).integers(0, VOCABULARY, (16, _TOKENS))
    split = Split(random, random)
    data = dataclasses.replace(load_data("reverse"), train=split, calibration=split, test=split)
    context = PassContext(data, 0, NUMPY)

    def cached(graph: Graph, **settings: Any) -> Graph:
        return PASSES["kv_cache"](**settings)(graph, context).graph

    codes = PASSES["quant"]()(learned, context).graph
    found = {
        "numpy, no cache": _recomputed(NUMPY.prepare(learned)),
        "numpy, cache": _kept(NUMPY.prepare(cached(learned))),
        "compiled, no cache": _recomputed(COMPILED.prepare(learned)),
        "compiled, cache": _kept(COMPILED.prepare(cached(learned))),
        "compiled, fp16 cache": _kept(COMPILED.prepare(cached(learned, dtype="fp16"))),
        "compiled, int8 cache": _kept(COMPILED.prepare(cached(learned, dtype="int8"))),
        "compiled int8, no cache": _recomputed(COMPILED.prepare(codes)),
        "compiled int8, cache": _kept(COMPILED.prepare(cached(codes))),
        "compiled int8, int8 cache": _kept(COMPILED.prepare(cached(codes, dtype="int8"))),
        "compiled, window": _kept(COMPILED.prepare(cached(rotary, window=_WINDOW, sinks=_SINKS))),
    }
    return found | ({_TORCH: _torch(learned)} if "torch" in installed() else {})


def _recomputed(executable: Executable) -> Subject:
    def at(context: int) -> Call:
        return lambda: executable(_PROMPT[:, :context])[:, -1].argmax(axis=-1)

    return Subject(at, lambda count: complete(executable, _PROMPT[:, :1], count)[0])


def _kept(executable: Executable) -> Subject:
    def at(context: int) -> Call:
        moves_on = executable.graph.window is not None  # what has left the window can't be gone back to
        session = executable.start(1, 10**9 if moves_on else CONTEXTS[-1])
        session.prefill(_PROMPT[:, : context - 1])

        def step() -> None:
            session.decode(_PROMPT[:, context - 1]).argmax(axis=-1)
            if not moves_on:
                session.truncate(context - 1)

        return step

    return Subject(at, lambda count: complete(executable, _PROMPT[:, :1], count)[0], executable)


def _torch(graph: Graph) -> Subject:
    import torch
    import torch_modules

    torch.set_num_threads(1)
    module = torch_modules.module_of(graph)
    assert isinstance(module, torch_modules.Transformer)
    caches = module.caches(CONTEXTS[-1])

    def write(token: torch.Tensor, place: int) -> torch.Tensor:
        with torch.inference_mode():
            return module(token, caches, place)[:, -1:].argmax(dim=-1)

    def at(context: int) -> Call:
        token = torch.from_numpy(_PROMPT[:, context - 1 : context])
        return lambda: write(token, context - 1)

    def generate(count: int) -> Array:
        tokens = [torch.from_numpy(_PROMPT[:, :1])]
        for place in range(count):
            tokens.append(write(tokens[-1], place))
        return torch.cat(tokens[1:], dim=1).numpy()[0]

    return Subject(at, generate)


def _steps(subjects: dict[str, Subject], seconds: float, clock: Clock) -> dict[str, dict[int, list[float]]]:
    """Return the seconds of one token, a list of rounds by subject and context; round i of all is comparable."""
    calls = {(name, context): subject.at(context) for name, subject in subjects.items() for context in CONTEXTS}
    counts = {key: max(1, round(_WINDOW_SECONDS / max(_window(call, 1, clock), 1e-6))) for key, call in calls.items()}
    times: dict[str, dict[int, list[float]]] = {name: defaultdict(list) for name in subjects}
    end, turn = clock() + seconds, 0
    while turn < _LEAST_ROUNDS or clock() < end:
        progress(f"round {turn + 1}")
        for context in CONTEXTS:
            for name in list(subjects)[:: 1 if turn % 2 else -1]:
                key = (name, context)
                times[name][context].append(_window(calls[key], counts[key], clock))
        turn += 1
    return times


def _window(call: Call, count: int, clock: Clock) -> float:
    # A token is one of many: half as many calls before bring back what others have taken from the caches. One isn't enough
    # where a step reads more than the second level holds; it took a fifth longer.
    for _ in range(count // 2 + 1):
        call()
    started = clock()
    for _ in range(count):
        call()
    return (clock() - started) / count


def _generations(subjects: dict[str, Subject], clock: Clock) -> dict[str, list[float]]:
    """Return the seconds of a whole generation, a list of rounds each. All that compute the same must write the same."""
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(_LEAST_ROUNDS + 1):
        progress(f"generating, round {turn + 1}")
        written = {}
        for name, subject in subjects.items():
            started = clock()
            written[name] = subject.generate(_TOKENS)
            if turn:  # the first warms up
                times[name].append(clock() - started)
        for name in ("numpy, cache", "compiled, no cache", "compiled, cache", _TORCH):
            if name in written:
                np.testing.assert_array_equal(written[name], written["numpy, no cache"], err_msg=name)
    return times


def _prefill(subject: Subject, clock: Clock) -> dict[str, list[float]]:
    """Seconds of a prompt at once and of the same prompt in steps, which must leave the same state."""
    assert subject.executable is not None
    times: dict[str, list[float]] = {"prefill": [], "steps": []}
    for _ in range(_LEAST_ROUNDS + 1):
        once, steps = (subject.executable.start(1, _TOKENS + 1) for _ in range(2))
        started = clock()
        once.prefill(_PROMPT[:, :_TOKENS])
        between = clock()
        for place in range(_TOKENS):
            steps.decode(_PROMPT[:, place])
        times["prefill"].append(between - started)
        times["steps"].append(clock() - between)
        ends = [session.decode(_PROMPT[:, _TOKENS]) for session in (once, steps)]
        np.testing.assert_allclose(*ends, rtol=0, atol=1e-4)
    return {name: seconds[1:] for name, seconds in times.items()}


def checks(
    steps: dict[str, dict[int, list[float]]],
    whole: dict[str, list[float]],
    ahead: dict[str, dict[str, list[float]]],
    bytes_: dict[str, int],
) -> list[Target]:
    """What was promised."""

    def faster(one: list[float], other: list[float]) -> float:
        return summarize(one, other).ratio

    fp32, int8, window = steps["compiled, cache"], steps["compiled, int8 cache"], steps["compiled, window"]
    targets = [
        Target(f"{_TOKENS} tokens: cache against none, numpy", 12, faster(whole["numpy, cache"], whole["numpy, no cache"])),
        Target(
            f"{_TOKENS} tokens: cache against none, compiled",
            10,
            faster(whole["compiled, cache"], whole["compiled, no cache"]),
        ),
    ]
    for who, what in (
        ("numpy", "cache"),
        ("compiled", "cache"),
        ("compiled int8", "cache"),
        ("compiled int8", "int8 cache"),
    ):
        ratio = faster(steps[f"{who}, {what}"][1024], steps[f"{who}, no cache"][1024])
        targets.append(Target(f"one token at 1,024: {what} against none, {who}", 100, ratio))
    if _TORCH in whole:
        ratio = faster(whole["compiled int8, cache"], whole[_TORCH])
        targets.append(Target(f"{_TOKENS} tokens: int8 with a cache against PyTorch's eager fp32 with its own", 10, ratio))
    smaller = bytes_["compiled, cache"] / bytes_["compiled, int8 cache"]
    targets.append(Target("bytes of an int8 cache: times smaller than fp32", 1 / 0.3, smaller))
    targets += [Target(f"int8 cache against fp32, a token at {c}", 1, faster(int8[c], fp32[c])) for c in (512, 1024)]
    targets += [
        Target(f"a prompt of {_TOKENS} at once against in steps, {who}", 5, faster(times["prefill"], times["steps"]))
        for who, times in ahead.items()
    ]
    targets.append(Target("a token of the window at 1,024 against at 256", 0.95, faster(window[1024], window[256])))
    return targets


def _grid(steps: dict[str, dict[int, list[float]]], bytes_: dict[str, int]) -> Grid:
    rows = []
    for name, times in steps.items():
        cells = {f"{context:,}": digits(float(np.median(times[context])) * 1e6) for context in CONTEXTS}
        rows.append({"": name, **cells, "KV bytes": f"{bytes_[name]:,}" if name in bytes_ else "-"})
    return build_grid(rows, left=("",))


def _whole_grid(whole: dict[str, list[float]]) -> Grid:
    return build_grid([{"": name, "ms": digits(float(np.median(t)) * 1e3)} for name, t in whole.items()], left=("",))


if __name__ == "__main__":
    sys.exit(main())
