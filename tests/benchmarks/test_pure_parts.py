"""What the benchmarks compute apart from measuring: paired ratios, verdicts, tables, and what they refuse."""

import math
import subprocess
import sys

import numpy as np
import pytest
from benchmark_scripts import BENCHMARKS, context, decode, roofline, side_by_side, streaming
from targets import Target, figure, target_grid
from windows import compare, summarize

from mlperf_opt.measure import nats_per_token

NAMES = ("side_by_side", "roofline", "decode", "context", "streaming")


class Clock:
    """Stands still but for `pass_`."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


def test_the_ratio_says_how_many_times_faster_the_first_is():
    clock = Clock()
    found = compare(lambda: clock.pass_(2e-5), lambda: clock.pass_(5e-5), 0.05, clock=clock)
    assert found.ratio == pytest.approx(2.5) and found.low == pytest.approx(2.5) and found.high == pytest.approx(2.5)
    assert (found.first_us, found.second_us) == (pytest.approx(20), pytest.approx(50))
    assert found.rounds >= 7


def test_a_slow_call_still_gets_its_windows():
    clock = Clock()
    assert compare(lambda: clock.pass_(1.0), lambda: clock.pass_(3.0), 0.001, clock=clock).rounds == 7


def test_one_disturbed_window_changes_nothing():
    first = np.full(21, 1e-3)
    first[4] = 1.0
    assert summarize(first, np.full(21, 3e-3)).ratio == pytest.approx(3)


@pytest.mark.parametrize("measured, verdict", [(5.0, "met"), (4.999, "missed"), (None, "-")])
def test_a_promise_is_met_or_missed_or_not_measured(measured, verdict):
    assert Target("what", 5, measured).verdict == verdict


@pytest.mark.parametrize(
    "value, unit, text",
    [
        (4.996, "x", "4.99x"),
        (4.99, "x", "4.99x"),
        (12.34, "x", "12.3x"),
        (842, "x", "842x"),
        (84.99, "%", "84.9%"),
        (None, "x", "-"),
    ],
)
def test_a_figure_is_never_rounded_up_to_what_was_promised(value, unit, text):
    assert figure(value, unit) == text


def _result(model, first, second, ratio, *, threads=1, equal=1.0, batches=("1", "1024")):
    times = {"first_us": 10.0, "second_us": 10.0 * ratio, "ratio": ratio, "low": ratio, "high": ratio, "rounds": 7}
    pair = {"model": model, "first": first, "second": second, "threads": threads, "equal": equal, "clock": "wall"}
    return {**pair, "times": dict.fromkeys(batches, times)}


def test_promises_are_read_off_the_results_of_one_thread():
    results = [
        _result("mlp", "ours int8", "onnxruntime int8", 5.9, equal=0.99),
        _result("mlp", "ours int8", "onnxruntime int8", 1.0, threads=2),
        _result("lenet5", "ours int8", "onnxruntime int8", 1.1),
        _result("lenet5", "ours", "onnxruntime", 0.9),
    ]
    rows = {row[0]: row[1:] for row in target_grid(side_by_side.checks(results)).rows}
    assert rows == {
        "batch 1 latency against onnxruntime int8, DigitMLP": ("5.90x", "5x", "met"),
        "batch 1 latency against onnxruntime int8, LeNet-5": ("1.10x", "2x", "missed"),
        "batch 1024 throughput against onnxruntime int8, LeNet-5": ("1.10x", "1.2x", "missed"),
        "batch 1024 throughput against onnxruntime fp32, LeNet-5": ("0.90x", "0.95x", "missed"),
        "predictions equal to onnxruntime's, int8, 597 digits, DigitMLP": ("99.0%", "99.5%", "missed"),
    }


@pytest.mark.parametrize(
    "first, equal, is_broken",
    [("ours", 0.98, True), ("ours", 1.0, False), ("ours int8", 0.9, False), ("ours int8", 0.8, True)],
)
def test_a_model_that_predicts_something_else_is_called_broken(first, equal, is_broken):
    assert bool(side_by_side.broken(_result("mlp", first, "torch", 2.0, equal=equal))) == is_broken


def test_the_table_has_a_row_for_each_model_and_batch_and_a_column_for_each_pair():
    grid = side_by_side.table([_result("mlp", "ours", "numpy", 4.0), _result("cnn", "ours", "onnxruntime", 0.5)])
    assert grid.headers == ("model", "batch", "fp32 us", "int8 us", "numpy", "ort fp32")
    assert grid.rows[0] == ("DigitMLP", "1", "10", "-", "4.00±0.00", "-")
    assert grid.rows[2] == ("SimpleCNN", "1", "10", "-", "-", "0.50±0.00")


def test_the_promises_of_the_cache_are_compared_with_its_own_runtime():
    times = {"numpy, no cache": 0.1, "numpy, cache": 300e-6, "compiled, no cache": 0.04, "compiled, cache": 300e-6}
    steps = {name: {c: [seconds] for c in context.CONTEXTS} for name, seconds in times.items()}
    steps["compiled, int8 cache"] = {**steps["compiled, cache"], 1024: [200e-6]}
    steps["compiled int8, no cache"] = steps["compiled, no cache"]
    steps["compiled int8, cache"] = steps["compiled int8, int8 cache"] = steps["compiled, int8 cache"]
    steps["compiled, window"] = {**steps["compiled, cache"], 1024: [400e-6]}
    whole = {"numpy, no cache": [1.3], "numpy, cache": [0.1], "compiled, no cache": [0.3], "compiled, cache": [0.04]}
    targets = context.checks(
        steps,
        whole,
        {"numpy": {"prefill": [1.0], "steps": [6.0]}, "compiled": {"prefill": [1.0], "steps": [4.0]}},
        {"compiled, cache": 400, "compiled, int8 cache": 110},
    )
    found = [(figure(target.measured), target.verdict) for target in targets]
    assert found == [
        ("13.0x", "met"),  # 1.3 / 0.1
        ("7.50x", "missed"),
        ("333x", "met"),  # 100 ms / 300 us
        ("133x", "met"),
        ("200x", "met"),  # 40 ms / 200 us
        ("200x", "met"),
        ("3.63x", "met"),  # 400 / 110 bytes
        ("1.00x", "met"),
        ("1.50x", "met"),
        ("6.00x", "met"),
        ("4.00x", "missed"),
        ("0.75x", "missed"),  # the window took 400 us at 1,024 and 300 at 256
    ]


def test_kept_times_are_drawn_one_curve_a_subject(tmp_path):
    source, image = tmp_path / "times.csv", tmp_path / "times.svg"
    source.write_text('subject,context,token_us\n"numpy, cache",32,1\ntorch,64,2.5\n')
    context.draw(source, image)
    drawn = image.read_text()
    assert drawn.count("<!-- numpy, cache -->") == 1 and drawn.count("<!-- torch -->") == 1


def _of_streams(nats):
    """Three streams of two tokens each, of two classes, whose targets have these nats."""
    chosen = np.exp(-np.array(nats))
    targets = np.zeros((3, 2), np.int64)
    return nats_per_token(lambda _: np.log(np.stack([chosen, 1 - chosen], axis=-1)), targets, targets, 3)


def test_perplexities_are_compared_stream_by_stream():
    other = _of_streams([[0.5, 0.7], [1.0, 2.0], [3.0, 0.4]])
    # 0.1, 0.2 and 0.3 nats a token more: mean 0.2, deviation 0.1
    one = _of_streams([[0.7, 0.7], [1.2, 2.2], [3.1, 0.9]])
    half = 1.96 * 0.1 / 3**0.5
    expected = [math.exp(0.2), math.exp(0.2 - half), math.exp(0.2 + half)]
    assert streaming.ratio(one, other) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "sinks, without, far, verdicts",
    [
        ([(1.0, 0.9, 1.08), (1.0, 0.9, 1.05)], (1.05, 1.02, 1.08), 1.0, ["met", "met", "met", "met", "met"]),
        ([(1.0, 0.9, 1.05), (1.05, 1.0, 1.12)], (1.001, 1.0005, 1.0015), 1.0, ["met", "missed", "met", "missed", "met"]),
        ([(1.0, 0.9, 1.05), (1.0, 0.9, 1.05)], (1.05, 0.99, 1.11), 1.1, ["met", "met", "missed", "missed", "missed"]),
        ([(1.0, 0.9, 1.05), (math.nan,) * 3], (math.nan,) * 3, 1.0, ["missed", "missed", "missed", "missed", "met"]),
    ],
)
def test_streams_are_held_to_the_worse_end_of_an_interval(sinks, without, far, verdicts):
    against = {"252 + 4 sinks": sinks, "64 + 0 sinks": [(2.0, 1.9, 2.1)] * 2}
    found = streaming.checks(against, without, np.array([[1.0, far]] * 5))
    assert [target.verdict for target in found] == verdicts
    assert "nan" not in [figure(target.measured, target.unit) for target in found]


def test_roofline_looks_its_promises_up_by_the_names_that_it_gives():
    kernels = [{"kernel": "int8 by vpdpbusd 1024x1024, batch 64", "ratio": 0.9}]
    ratios = [{"what": "int8 against fp32, 1024x1024, batch 1", "ratio": 2.0}]
    verdicts = [target.verdict for target in roofline.checks(kernels, ratios)]
    assert verdicts == ["met", "-", "missed", "-", "-"]


@pytest.mark.parametrize(
    "script, words, line",
    [
        (side_by_side, ["--models", "lenet"], "side_by_side.py: --models lenet: no such name; did you mean 'lenet5'?"),
        (side_by_side, ["--clock", "cpu", "--threads", "2"], "side_by_side.py: --clock cpu: adds up"),
        (roofline, ["--seconds", "0"], "roofline.py: argument --seconds: 0: expected a number above 0"),
        (roofline, ["--json", "no/such/folder"], "roofline.py: argument --json: no/such/folder: no file can be written"),
        (decode, ["--tokens", "8"], "decode.py: --tokens 8: expected more than 8"),
        (context, ["--draw", "none.csv"], "context.py: argument --draw: expected 2 arguments"),
        (context, ["--draw", "none.csv", "a.svg"], "context.py: none.csv: no such file"),
        (context, ["--draw", __file__, "a.nothing"], "context.py: a.nothing: expected an image as .svg, .png or .pdf"),
        (context, ["--csv", "no/such/folder"], "context.py: argument --csv: no/such/folder: no file can be written"),
        (decode, ["--token", "8"], "decode.py: unrecognized arguments"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(script, words, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *words])
    with pytest.raises(SystemExit) as ended:
        sys.exit(script.main())
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err.startswith(line) and said.err.count("\n") == 1 and said.out == ""


@pytest.mark.cli
@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_is_compared(name):
    """As a process, which shows too that it finds its modules."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "interleaved" in done.stdout.lower() or "turns" in done.stdout
