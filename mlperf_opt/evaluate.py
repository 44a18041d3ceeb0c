"""Measure one model as it was read back from its file: quality, speed against the baseline, memory.

The quality run and the timed runs use the same executable; the timed outputs are compared with those of the quality run.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.data import Dataset, HeldOut, Split
from mlperf_opt.graph import Graph
from mlperf_opt.measure import (
    Quality,
    accuracy,
    exact_match,
    flips,
    nats_per_token,
    peak_bytes,
    samples_per_second,
    time_pair,
)
from mlperf_opt.runtimes import (
    NUMPY,
    Executable,
    Runtime,
    complete,
    continuations,
    difference,
    is_quantized,
    may_flip,
    rows_at_once,
    stepwise,
)
from mlperf_opt.settings import require

Array = NDArray[Any]

_QUALITY_BATCH = 256
_WARMUP_SECONDS = 0.05
_MOST_LOGITS = 1 << 22  # numbers, in a batch of text
_PROMPTS = 16  # of a text that are gone on with: each takes many steps
_EXACT_ROWS = 32  # sequences or images that the check of an exact pass looks at
_REFERENCE_ROWS = 64
_THROUGHPUT_SHARE = 0.2  # of the time for latencies
_GENERATION_SHARE = 0.4


@dataclass(frozen=True)
class MeasureSettings:
    """How a step is measured.

    Attributes:
        seconds: of interleaved timing for each step.
        batch: samples in a timed query.
        throughput_batch: samples in a query of the throughput measurement.
        max_drop: a larger loss of quality than this against the baseline is marked: a fraction, or for a text nats for each
            token, where 0.01 more is a perplexity 1 % higher.
        split: what quality is counted on and timed queries are taken from: test, or calibration while settings are chosen,
            which leaves the test split unread.
    """

    seconds: float = 0.5
    batch: int = 1
    throughput_batch: int = 256
    max_drop: float = 0.01
    split: HeldOut = "test"

    def __post_init__(self) -> None:
        require(0 < self.seconds <= 3600, "seconds", self.seconds, "more than 0, at most 3600")
        require(self.batch >= 1, "batch", self.batch, "a whole number >= 1")
        require(self.throughput_batch >= 1, "throughput_batch", self.throughput_batch, "a whole number >= 1")
        require(0 <= self.max_drop <= 1, "max_drop", self.max_drop, "0 to 1")


class Subject:
    """A model under measurement: its executable, and what one query of the task is.

    A query of a classification is a batch of inputs; of a completion or a text, greedy generation of the whole answer.
    Inputs are those of one held-out split.
    """

    def __init__(self, graph: Graph, runtime: Runtime, data: Dataset, batch: int, split: HeldOut = "test") -> None:
        self.graph = graph
        self.executable: Executable = runtime.prepare(graph)
        self._reference = None if runtime.name == NUMPY.name else NUMPY
        self._traced = runtime.traced
        # where nothing can be rounded the other way, the reference is held to what it is for floats
        self._loose = is_quantized(graph) and not (runtime.exact and not may_flip(graph))
        self._data = data
        self._split = data.held_out(split)
        self._inputs = self._split.inputs if data.task == "classification" else prompts(data, self._split)
        starts = range(0, len(self._inputs) - batch + 1, batch)
        self._queries = [self._inputs[start : start + batch] for start in starts] or [self._inputs]
        self.batch = len(self._queries[0])  # a batch beyond the split is the whole split
        self.timed_outputs: dict[int, Array] = {}
        self.quality = self._measure_quality()
        is_text = data.task == "language"  # whose quality run generates nothing
        self._expected = np.concatenate([self.run(query) for query in self._queries]) if is_text else self.quality.outputs

    def run(self, inputs: Array) -> Array:
        """Run one query."""
        if self._data.task == "classification":
            return self.executable(inputs)
        return complete(self.executable, inputs, self._data.answer)

    def query(self, index: int) -> None:
        """Run a query of the timed run, and keep its output for the comparison with the quality run."""
        index %= len(self._queries)
        self.timed_outputs[index] = self.run(self._queries[index])

    def _measure_quality(self) -> Quality:
        if self._data.task == "completion":
            return exact_match(self.run, self._inputs, answers(self._data, self._split), _QUALITY_BATCH)
        if self._data.task == "language":
            return text_quality(self.executable, self._split)
        return accuracy(self.run, self._inputs, self._split.targets, _QUALITY_BATCH)

    def timed_difference(self) -> str:
        """Return what is wrong with the outputs of the timed run, ``""`` if they are those of the quality run."""
        if not self.timed_outputs:
            return "no query was timed"
        for index, output in self.timed_outputs.items():
            expected = self._expected[index * self.batch : index * self.batch + len(output)]
            fact = difference(expected, output, is_quantized(self.graph))
            if fact:
                return f"timed query {index} differs from the quality run: {fact}"
        return ""

    def throughput(self, batch: int, seconds: float) -> tuple[float, int]:
        """Return (samples per second in batches, samples a batch)."""
        batch = min(batch, len(self._inputs))
        return samples_per_second(lambda: len(self.run(self._inputs[:batch])), seconds), batch

    def generation(self, seconds: float) -> tuple[float, float]:
        """Return median microseconds of (the first token after a prompt, each token after that)."""
        taken: dict[bool, list[int]] = defaultdict(list)
        end = time.perf_counter() + seconds
        for turn in range(1 << 30):
            started, first = time.perf_counter_ns(), True
            for _ in continuations(self.executable, self._queries[turn % len(self._queries)], self._data.answer):
                taken[first].append(time.perf_counter_ns() - started)
                started, first = time.perf_counter_ns(), False
            if turn >= 2 and time.perf_counter() > end:  # the first two rounds warm up
                break
        rounds = {first: values[len(values) // 4 :] for first, values in taken.items()}
        return median(rounds[True]) / 1000, median(rounds[False]) / 1000

    def against_reference(self) -> tuple[float | None, str]:
        """Return (largest difference to the numpy runtime, what is wrong with it), over part of the calibration split."""
        if self._reference is None:
            return None, ""
        rows = self._data.calibration.inputs[:_REFERENCE_ROWS]
        expected, actual = self._reference.prepare(self.graph)(rows), self.executable(rows)
        fact = difference(expected, actual, self._loose)
        worst = float(np.abs(expected - actual).max()) if expected.shape == actual.shape else None
        return worst, f"differs from the numpy runtime: {fact}" if fact else ""

    def state_bytes(self) -> int | None:
        """Return the bytes of the state that a query allocates, None for a graph without state."""
        if not self.graph.state:
            return None
        length = self._data.prompt + self._data.answer - 1
        return self.executable.start(self.batch, length).state_bytes

    def peak_bytes(self) -> int | None:
        """Return the peak of what a query holds, allocated before or by it; None where it can't be seen."""
        return self.executable.workspace_bytes + peak_bytes(lambda: self.query(0)) if self._traced else None


def text_quality(executable: Executable, split: Split) -> Quality:
    """Return the nats per token of a text, each token predicted once. A graph with a cache reads token by token."""
    classes = int(executable.graph.specs[executable.graph.outputs[0]].shape[-1])
    batch = int(np.clip(_MOST_LOGITS // (split.inputs.shape[1] * classes), 1, rows_at_once(split.inputs)))
    return nats_per_token(lambda tokens: stepwise(executable, tokens), split.inputs, split.targets, batch)


def prompts(data: Dataset, split: Split) -> Array:
    """The prompts (N, P) of a held-out split: of a completion's all rows, of a text's the first few windows."""
    return split.inputs[: len(split) if data.task == "completion" else _PROMPTS, : data.prompt]


def answers(data: Dataset, split: Split) -> Array:
    """The answers (N, A) of a completion task's held-out split."""
    return split.targets[:, data.prompt - 1 :]


def exactness(before: Subject, after: Subject, data: Dataset) -> str:
    """Return how an exact pass changed the outputs, ``""`` if it didn't. A cache is stepped token by token."""
    rows = data.calibration.inputs[:_EXACT_ROWS]
    expected, actual = stepwise(before.executable, rows), stepwise(after.executable, rows)
    if is_quantized(after.graph) and data.task != "classification":
        expected, actual = expected.argmax(axis=-1), actual.argmax(axis=-1)
    return difference(expected, actual, is_quantized(after.graph))


def measure(
    subject: Subject, baseline: Subject, data: Dataset, settings: MeasureSettings, seed: int
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Measure ``subject`` against ``baseline`` (itself, for the baseline's own row).

    Returns:
        (columns of the record, faults that make the row INVALID, notes on missing or doubtful numbers).
    """
    quality = subject.quality
    before, after = baseline.quality.correct, quality.correct
    fixed, broken = (None, None) if before is None or after is None else flips(before, after)
    delta = quality.gain - baseline.quality.gain
    reference, disagreement = subject.against_reference()
    warmup = min(_WARMUP_SECONDS, settings.seconds)
    timing = time_pair(baseline.query, subject.query, seconds=settings.seconds, seed=seed, warmup_seconds=warmup)
    throughput, throughput_batch = subject.throughput(settings.throughput_batch, settings.seconds * _THROUGHPUT_SHARE)
    columns: dict[str, Any] = {
        "quality_metric": quality.metric,
        "quality": quality.value,
        "quality_low": quality.low,
        "quality_high": quality.high,
        "quality_delta": delta,
        "fixed": fixed,
        "broken": broken,
        "quality_ok": delta >= -settings.max_drop,
        "latency_p50_us": timing.p50_us,
        "latency_p90_us": timing.p90_us,
        "latency_p99_us": timing.p99_us,
        "latency_n": timing.n,
        "throughput_per_s": throughput,
        "throughput_batch": throughput_batch,
        "speedup": timing.speedup,
        "speedup_low": timing.speedup_low,
        "speedup_high": timing.speedup_high,
        "noise_low": timing.noise_low,
        "noise_high": timing.noise_high,
        "reference_max_abs_diff": reference,
        "state_bytes": subject.state_bytes(),
        "plan": "; ".join(f"{node}: {note}" for node, note in subject.executable.notes.items()) or None,
        "peak_activation_bytes": subject.peak_bytes(),
    }
    if data.task != "classification":
        columns["prefill_us"], columns["token_us"] = subject.generation(settings.seconds * _GENERATION_SHARE)
    faults = [fact for fact in (subject.timed_difference(), disagreement) if fact]
    if quality.nan_rows:
        faults.append(f"{quality.nan_rows} outputs are not a number")
    notes = [text_note(quality, data, settings.split)] if data.task == "language" else []
    return columns, faults, [*notes, *timing.notes]


def text_note(quality: Quality, data: Dataset, split: HeldOut) -> str:
    """Say what nats are in other units: the perplexity of a token, and bits for each character."""
    assert data.tokenizer is not None
    targets = data.held_out(split).targets
    counted = targets[targets >= 0]
    characters = len(data.tokenizer.decode(counted.tolist()).decode("utf-8", "replace"))
    bits = quality.value * len(counted) / math.log(2) / characters
    return f"perplexity {math.exp(quality.value):.3f}, {bits:.4f} bits per character"
