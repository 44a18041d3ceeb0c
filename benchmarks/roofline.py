"""Our kernels against what the CPU can do at best: python benchmarks/roofline.py.

A kernel that multiplies is held against a loop of the same instruction on registers alone, one that is as fast as it gets
its weights (batch 1) against a loop that reads a buffer of their size. Each is timed with its limit, interleaved, on one
thread: the share is the median of the paired ratios, with a 95 % bootstrap interval. Kernels are timed as parts of a
program, without the call around it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import environment

environment.fix_threads()

from cases import model
from output import conditions, keep, parser, progress, show, system_facts
from parts import attention_call, float_product, int8_product, node_call
from peaks import Peak, arithmetic_peaks, copy_call, read_call
from targets import Target, digits, figure, target_grid
from windows import CLOCKS, Comparison, compare

from mlperf_opt.graph import Graph
from mlperf_opt.measure import fix_threads
from mlperf_opt.report.grid import Grid, build_grid
from mlperf_opt.runtimes import Isa

UNITS = 1024
_SECONDS, _SHORT_SECONDS = 0.6, 0.15
_BUFFERS = {"L1, 16 KB": 16 << 10, "L2, 1 MB": 1 << 20, "beyond, 256 MB": 256 << 20}
_CONV_IMAGES = 16
_POSITIONS = 256
_GIGA = 1e9
_NOTE = (
    "a copy counts bytes read and written; batch 1 is held against reading its weights, attention against reading its cache"
)


@dataclass(frozen=True)
class Kernel:
    """A kernel to be timed.

    Attributes:
        name: in the table.
        call: runs it ``repeat`` times.
        repeat: how often a call runs it.
        work: multiply-adds, or bytes where ``peak`` is None, of one run.
        peak: the loop that it is held against; None: reading a buffer of ``work`` bytes.
    """

    name: str
    call: Callable[[], None]
    repeat: int
    work: int
    peak: Peak | None


Timed = Callable[[Callable[[], Any], Callable[[], Any]], Comparison]


def main() -> int:
    """Run the command line."""
    arguments = parser(__doc__).parse_args()
    seconds = arguments.seconds or (_SHORT_SECONDS if arguments.short else _SECONDS)
    buffers = {name: size for name, size in _BUFFERS.items() if not arguments.short or size <= 1 << 20}

    def timed(first: Callable[[], Any], second: Callable[[], Any]) -> Comparison:
        return compare(first, second, seconds, clock=CLOCKS[arguments.clock])

    with fix_threads(1):
        progress("limits")
        peaks = arithmetic_peaks()
        limits = _limits(peaks, buffers, timed)
        rows = []
        for kernel in _kernels(peaks):
            progress(kernel.name)
            rows.append(_against_limit(kernel, timed))
        progress("ratios")
        ratios = _ratios(timed, peaks)
    system = system_facts()
    targets = checks(rows, ratios)
    tables = [
        ("Limits", build_grid(limits, left=("limit",))),
        ("Kernels, share of their limit", _kernel_grid(rows)),
        ("Kernels against each other", _ratio_grid(ratios)),
        ("Promised", target_grid(targets)),
    ]
    show(system, tables, [_NOTE, *conditions(system, arguments.clock)], as_markdown=arguments.markdown)
    verdicts = [vars(t) | {"verdict": t.verdict} for t in targets]
    keep(arguments.json, system, {"limits": limits, "kernels": rows, "ratios": ratios, "targets": verdicts})
    return 0


def _limits(peaks: dict[str, Peak], buffers: dict[str, int], timed: Timed) -> list[dict[str, str]]:
    """The table of limits: each loop beside itself, for its time alone."""
    rows = []
    for peak in peaks.values():
        rate = peak.macs / (timed(peak.call, peak.call).first_us * 1e-6) / _GIGA
        rows.append({"limit": f"{peak.name}, registers only", "measured": f"{rate:.0f} GMAC/s"})
    for where, size in buffers.items():
        for what, make in (("read", read_call), ("copy", copy_call)):
            call, moved = make(size)
            rate = moved / (timed(call, call).first_us * 1e-6) / _GIGA
            rows.append({"limit": f"{what}, {where}", "measured": f"{rate:.1f} GB/s"})
    return rows


def _kernels(peaks: dict[str, Peak]) -> list[Kernel]:
    """Every kernel with its limit; those of instructions that the CPU lacks are left out."""
    macs, vnni, tiles = UNITS * UNITS, peaks.get("vpdpbusd"), peaks.get("tdpbusd")
    int8, fp32 = int8_product(UNITS, UNITS), float_product(UNITS, UNITS)
    shape = f"{UNITS}x{UNITS}"
    made = []

    def product(name: str, graph: Graph, rows: int, work: int, peak: Peak | None, isa: Isa = "auto") -> None:
        made.append(Kernel(f"{name} {shape}, batch {rows}", *node_call(graph, "y", rows, isa), work, peak))

    if vnni:
        product("int8 by vpdpbusd", int8, 64, 64 * macs, vnni, "vnni")
    if tiles:
        product("int8 by AMX", int8, 64, 64 * macs, tiles)
        product("int8 by AMX, of vpdpbusd's peak,", int8, 64, 64 * macs, vnni)
    product("int8", int8, 1, macs, None)
    for rows in (64, 96):
        product("fp32", fp32, rows, rows * macs, peaks["fma"])
    product("fp32", fp32, 1, 4 * macs, None)
    return made + _convolutions(peaks) + [_attention()]


def _convolutions(peaks: dict[str, Peak]) -> list[Kernel]:
    lenet, made = model("lenet5"), []
    kinds: list[tuple[str, Graph, str, Isa]] = [("fp32", lenet.graph, "fma", "auto")]
    kinds.append(("int8 by vpdpbusd", lenet.int8, "vpdpbusd", "vnni"))
    kinds.append(("int8 by AMX", lenet.int8, "tdpbusd", "auto"))
    for kind, graph, peak, isa in kinds:
        for name in ("conv1", "conv2"):
            if peak not in peaks or (peak == "tdpbusd" and name == "conv1"):
                continue  # a line of conv1's filters is 5 values, too few for a tile: it runs on vpdpbusd anyway
            channels, depth, side, _ = lenet.graph.weights[f"{name}.weight"].values.shape
            pixels = lenet.graph.specs[name].shape[2:]
            work = _CONV_IMAGES * int(pixels[0]) * int(pixels[1]) * channels * depth * side * side
            call = node_call(graph, name, _CONV_IMAGES, isa)
            made.append(Kernel(f"{kind} LeNet-5 {name}, batch {_CONV_IMAGES}", *call, work, peaks[peak]))
    return made


def _attention() -> Kernel:
    call, repeat, moved = attention_call(_POSITIONS)
    return Kernel(f"attention, one token at {_POSITIONS}, 4 heads of 32", call, repeat, moved, None)


def _against_limit(kernel: Kernel, timed: Timed) -> dict[str, Any]:
    if kernel.peak is None:
        call, work = read_call(kernel.work)
    else:
        call, work = kernel.peak.call, kernel.peak.macs
    found = timed(kernel.call, call)
    done = kernel.work * kernel.repeat
    unit = "GB/s" if kernel.peak is None else "GMAC/s"
    return {
        "kernel": kernel.name,
        "us": found.first_us / kernel.repeat,
        "rate": done / (found.first_us * 1e-6) / _GIGA,
        "unit": unit,
        "limit": f"read {kernel.work >> 10:,} KB" if kernel.peak is None else kernel.peak.name,
        **{name: value * done / work for name, value in asdict(found).items() if name in ("ratio", "low", "high")},
    }


def _ratios(timed: Timed, peaks: dict[str, Peak]) -> list[dict[str, Any]]:
    """int8 against fp32, and pruned against dense, of the same shape."""
    int8, fp32 = int8_product(UNITS, UNITS), float_product(UNITS, UNITS)
    pairs: list[tuple[str, Graph, Isa, int]] = []
    for rows in (64, 1):
        pairs.append(("int8 against fp32", int8, "auto", rows))
        if "tdpbusd" in peaks and rows > 1:
            pairs.append(("int8 by vpdpbusd against fp32", int8, "vnni", rows))
    for share in (0.9, 0.95):
        pairs.append((f"fp32, {share:.0%} pruned, against dense", float_product(UNITS, UNITS, share), "auto", 1))
    made = []
    for name, graph, isa, rows in pairs:
        (call, often), (dense, again) = node_call(graph, "y", rows, isa), node_call(fp32, "y", rows)
        found = timed(call, dense)
        assert often == again, "both calls run their kernel equally often"
        made.append({"what": f"{name}, {UNITS}x{UNITS}, batch {rows}", **asdict(found)})
    return made


def _kernel_grid(rows: list[dict[str, Any]]) -> Grid:
    return build_grid(
        [
            {
                "kernel": row["kernel"],
                "us": digits(row["us"]),
                "rate": f"{row['rate']:.0f} {row['unit']}",
                "limit": row["limit"],
                "share": f"{figure(100 * row['ratio'], '%')} ±{50 * (row['high'] - row['low']):.1f}",
            }
            for row in rows
        ],
        left=("kernel", "limit"),
    )


def _ratio_grid(ratios: list[dict[str, Any]]) -> Grid:
    return build_grid(
        [{"what": row["what"], "faster": f"{figure(row['ratio'])} ±{(row['high'] - row['low']) / 2:.2f}"} for row in ratios],
        left=("what",),
    )


def checks(kernels: list[dict[str, Any]], ratios: list[dict[str, Any]]) -> list[Target]:
    """The promises that these figures speak of."""
    shares = {row["kernel"]: 100 * row["ratio"] for row in kernels}
    times = {row["what"]: row["ratio"] for row in ratios}
    shape = f"{UNITS}x{UNITS}"
    name = f"int8 by vpdpbusd {shape}, batch 64"
    targets = [Target(f"{name}: share of the measured peak", 85, shares.get(name), "%")]
    for what, wanted in (
        (f"int8 against fp32, {shape}, batch 64", 4),
        (f"int8 against fp32, {shape}, batch 1", 3),
        (f"fp32, 90% pruned, against dense, {shape}, batch 1", 2),
        (f"fp32, 95% pruned, against dense, {shape}, batch 1", 4),
    ):
        targets.append(Target(what, wanted, times.get(what)))
    return targets


if __name__ == "__main__":
    sys.exit(main())
