"""Our runtimes against onnxruntime and PyTorch, interleaved: python benchmarks/side_by_side.py [--models mlp,lenet5 ...].

Each pair of subjects is timed in a process of its own, in windows that alternate; a figure is the median of the ratios of
neighbouring windows, with a 95 % bootstrap interval: how many times faster ours is. onnxruntime runs our exported file
(int8: QDQ, static, a scale per channel), PyTorch an eager module with the same weights (int8: its static eager mode).
Predictions are compared too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import environment

environment.fix_threads()

from cases import MODELS, PREFILL, title
from output import Parser, conditions, keep, parser, progress, show, system_facts, whole
from peers import PAIRS, PEERS, installed
from targets import Target, digits, figure, target_grid

from mlperf_opt.errors import did_you_mean
from mlperf_opt.measure import cpu_flags
from mlperf_opt.report.grid import Grid, build_grid

BATCHES = {"images": (1, 64, 1024), "tokens": (1, 16)}
_SECONDS, _SHORT_SECONDS = 1.0, 0.2
# Random networks have close calls, and PyTorch chooses ranges of its own.
_LEAST_EQUAL = {"fp32": 0.99, "int8": 0.85}
_HEADERS = {
    ("ours int8", "ours"): "int8/fp32",
    ("ours", "numpy"): "numpy",
    ("ours", "onnxruntime"): "ort fp32",
    ("ours", "torch"): "torch fp32",
    ("ours int8", "onnxruntime int8"): "ort int8",
    ("ours int8", "torch int8"): "torch int8",
}
Result = dict[str, Any]


def main() -> int:
    """Run the command line."""
    words = _parser()
    arguments = words.parse_args()
    names = _chosen(words, "--models", arguments.models, MODELS)
    peers = _chosen(words, "--peers", arguments.peers, PEERS)
    missing = [peer for peer in peers if peer not in installed()]
    if missing and arguments.peers:
        words.error(f"--peers {missing[0]}: not installed")
    seconds = arguments.seconds or (_SHORT_SECONDS if arguments.short else _SECONDS)
    threads = arguments.threads or ((1,) if arguments.short or arguments.clock == "cpu" else (1, 2))
    if arguments.clock == "cpu" and max(threads) > 1:
        words.error("--clock cpu: adds up the time of all threads, so it says nothing of several")
    jobs = [
        {
            "model": name,
            "first": first,
            "second": second,
            "threads": n,
            "batches": _batches(name, arguments.batches),
            "seconds": seconds,
            "clock": arguments.clock,
        }
        for n in threads
        for name in names
        for peer, first, second in PAIRS
        if peer in peers and peer in installed()
    ]
    results, failed = [], []
    for place, job in enumerate(jobs, start=1):
        what = f"{title(job['model'])}, {job['first']} and {job['second']}, threads: {job['threads']}"
        progress(f"{place}/{len(jobs)}: {what}")
        try:
            results.append(_run(job))
        except subprocess.CalledProcessError:  # it has said why
            failed.append(what)
    failed += [reason for result in results if (reason := broken(result))]
    targets = checks(results)
    tables = [(_caption(n), table([r for r in results if r["threads"] == n])) for n in threads]
    if targets:
        tables.append(("Promised, one thread", target_grid(targets)))
    system = system_facts()
    show(system, tables, [*_notes(results), *conditions(system, arguments.clock)], as_markdown=arguments.markdown)
    keep(arguments.json, system, {"results": results, "targets": [vars(t) | {"verdict": t.verdict} for t in targets]})
    if missing:
        print(f"not installed, so not compared: {', '.join(missing)}")
    for what in failed:
        print(f"FAILED: {what}")
    return 1 if failed else 0


def _parser() -> Parser:
    words = parser(__doc__)
    words.add_argument("--models", metavar="A,B", help=f"of {', '.join(MODELS)}; default all")
    words.add_argument(
        "--peers", metavar="A,B", help=f"of {', '.join(PEERS)} (ours: int8 against fp32); default: the installed"
    )
    words.add_argument("--batches", type=_numbers, metavar="1,64", help="default 1,64,1024; of the transformer 1,16")
    words.add_argument("--threads", type=_numbers, metavar="1,2", help="default 1,2; with --short 1")
    return words


def _numbers(word: str) -> tuple[int, ...]:
    return tuple(whole(part) for part in word.split(","))


def _chosen(words: Parser, option: str, given: str | None, known: Sequence[str]) -> tuple[str, ...]:
    chosen = tuple(given.split(",")) if given else tuple(known)
    for name in chosen:
        if name not in known:
            words.error(f"{option} {name}: no such name{did_you_mean(name, known)}")
    return chosen


def _batches(name: str, given: tuple[int, ...] | None) -> tuple[int, ...]:
    return given or BATCHES["tokens" if name == "transformer" else "images"]


def _run(job: Result) -> Result:
    """Time one pair in a process of its own; its errors go to stderr as they are."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("one_pair.py")), json.dumps(job)],
        env=environment.with_threads(job["threads"]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def _caption(threads: int) -> str:
    count = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{count}: how many times faster ours is (transformer: sequences of {PREFILL} tokens)"


def table(results: Sequence[Result]) -> Grid:
    """One row a model and batch: our times in microseconds, and the ratio to each peer."""
    rows = []
    for name, batch in dict.fromkeys((r["model"], b) for r in results for b in r["times"]):
        here = [r for r in results if r["model"] == name and batch in r["times"]]
        row = {"model": title(name), "batch": batch}
        for subject, header in (("ours", "fp32 us"), ("ours int8", "int8 us")):
            found = [r["times"][batch]["first_us"] for r in here if r["first"] == subject]
            row[header] = digits(median(found)) if found else "-"
        for pair, header in _HEADERS.items():
            if any((r["first"], r["second"]) == pair for r in results):
                row[header] = next((_ratio(r["times"][batch]) for r in here if (r["first"], r["second"]) == pair), "-")
        rows.append(row)
    return build_grid(rows, left=("model",))


def _ratio(times: dict[str, float]) -> str:
    half = (times["high"] - times["low"]) / 2
    digits = 0 if times["ratio"] >= 100 else 1 if times["ratio"] >= 10 else 2
    return f"{figure(times['ratio'], '')}±{half:.{digits}f}"


def broken(result: Result) -> str | None:
    """Say so where two subjects predict so differently that one of them must be wrong: its times are of nothing."""
    least = _LEAST_EQUAL["int8" if "int8" in result["first"] + result["second"] else "fp32"]
    if result["equal"] >= least:
        return None
    pair = f"{title(result['model'])}, {result['first']} and {result['second']}"
    return f"{pair}: {result['equal']:.3f} of the predictions are equal, expected {least:.2f}"


def checks(results: Sequence[Result]) -> list[Target]:
    """The promises that these results speak of; one thread."""
    one = {(r["model"], r["first"], r["second"]): r for r in results if r["threads"] == 1}

    def ratio(what: str, wanted: float, names: Sequence[str], pair: tuple[str, str], batch: int) -> list[Target]:
        found = [(name, one[name, *pair]["times"].get(str(batch))) for name in names if (name, *pair) in one]
        return [Target(f"{what}, {title(name)}", wanted, times["ratio"]) for name, times in found if times]

    int8, fp32 = ("ours int8", "onnxruntime int8"), ("ours", "onnxruntime")
    targets = ratio("batch 1 latency against onnxruntime int8", 5, ("mlp", "cnn"), int8, 1)
    targets += ratio("batch 1 latency against onnxruntime int8", 2, ("lenet300", "lenet5"), int8, 1)
    targets += ratio("batch 1024 throughput against onnxruntime int8", 1.2, ("lenet300", "lenet5", "mlp1024"), int8, 1024)
    targets += ratio("batch 1 latency against onnxruntime fp32", 3, ("mlp", "cnn"), fp32, 1)
    targets += ratio("batch 1024 throughput against onnxruntime fp32", 0.95, MODELS, fp32, 1024)
    for pair, kind, wanted in ((fp32, "fp32", 100.0), (int8, "int8", 99.5)):
        for name in ("mlp", "cnn"):
            if (name, *pair) in one:
                what = f"predictions equal to onnxruntime's, {kind}, 597 digits, {title(name)}"
                targets.append(Target(what, wanted, 100 * one[name, *pair]["equal"], "%"))
    return targets


def _notes(results: Sequence[Result]) -> list[str]:
    notes = []
    for pair, header in _HEADERS.items():
        found = [r for r in results if (r["first"], r["second"]) == pair]
        if found:
            least = min(found, key=lambda r: r["equal"])
            notes.append(f"{header} {least['equal']:.3f} ({title(least['model'])})")
    lines = ["smallest share of equal predictions: " + ", ".join(notes)]
    if {r["threads"] for r in results} - {1}:
        lines.append("several threads: windows begin 5 ms apart, so that waiting threads of the other don't take a core")
    if not {"avx512_vnni", "avx_vnni"} & set(cpu_flags()):
        lines.append("this CPU has no VNNI: onnxruntime's int8 products may saturate, and the promises were not made for it")
    return lines


if __name__ == "__main__":
    sys.exit(main())
