"""Clocks and statistics over plain callables: nothing here knows what a graph or a model is."""

from mlperf_opt.measure.memory import peak_bytes
from mlperf_opt.measure.quality import Quality, accuracy, exact_match, nats_per_token
from mlperf_opt.measure.statistics import early_stopping_estimate, flips, median_ratio_interval, wilson_interval
from mlperf_opt.measure.system import cpu_flags, cpu_name, describe_system, fix_threads
from mlperf_opt.measure.throughput import samples_per_second
from mlperf_opt.measure.timing import PairTiming, noise_factor, time_pair, verdict

__all__ = [
    "PairTiming",
    "Quality",
    "accuracy",
    "cpu_flags",
    "cpu_name",
    "describe_system",
    "early_stopping_estimate",
    "exact_match",
    "fix_threads",
    "flips",
    "median_ratio_interval",
    "nats_per_token",
    "noise_factor",
    "peak_bytes",
    "samples_per_second",
    "time_pair",
    "verdict",
    "wilson_interval",
]
