"""Memory, throughput and the description of the system."""

import getpass
import json
import platform
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from mlperf_opt.errors import ConfigError, MlperfOptError
from mlperf_opt.measure import describe_system, fix_threads, peak_bytes, samples_per_second, system


def test_peak_is_what_lives_at_once():
    def call():
        first = np.ones(1_000_000, np.uint8)
        second = np.ones(2_000_000, np.uint8)
        del first, second
        return np.ones(500_000, np.uint8)

    assert peak_bytes(call) == pytest.approx(3_000_000, rel=0.01)
    assert not tracemalloc.is_tracing()


def test_peak_leaves_a_running_trace_alone():
    tracemalloc.start()
    try:
        kept = np.ones(4_000_000, np.uint8)
        np.ones(9_000_000, np.uint8)  # an earlier peak, gone by now
        assert peak_bytes(lambda: np.ones(100_000, np.uint8)) == pytest.approx(100_000, rel=0.05)
        assert tracemalloc.is_tracing()
        assert kept.size
    finally:
        tracemalloc.stop()


def test_peak_stops_tracing_after_an_error():
    with pytest.raises(ZeroDivisionError):
        peak_bytes(lambda: 1 / 0)
    assert not tracemalloc.is_tracing()


def batches(costs_ms, samples=10):
    """Return a fake run of batches with these times (the last one for ever) and its clock."""
    now = [0.0]
    left = list(costs_ms)

    def run():
        now[0] += 1e6 * (left.pop(0) if len(left) > 1 else left[0])
        return samples

    return run, lambda: now[0]


def test_throughput_is_samples_over_time():
    run, clock = batches([1])
    assert samples_per_second(run, 0.05, clock=clock) == pytest.approx(10_000)


def test_throughput_leaves_out_the_first_batch_and_slow_windows():
    run, clock = batches([500, 400, 400, 1])
    assert samples_per_second(run, 0.05, clock=clock) == pytest.approx(10_000)


def test_throughput_finds_lies():
    with pytest.raises(MlperfOptError, match="a batch of 0 samples"):
        run, clock = batches([1], samples=0)
        samples_per_second(run, 0.05, clock=clock)
    with pytest.raises(MlperfOptError, match="the clock doesn't advance"):
        samples_per_second(lambda: 10, 0.05, clock=lambda: 5)
    with pytest.raises(ConfigError, match="seconds=0: expected more than 0"):
        samples_per_second(lambda: 10, 0)


def test_the_system_is_described_in_json_without_names_and_places():
    found = describe_system()
    text = json.dumps(found, allow_nan=False)
    assert found["python"].endswith(platform.python_version())
    assert found["dependencies"]["numpy"] == np.__version__
    assert found["usable_cores"] >= 1
    assert any(pool["user_api"] == "blas" and pool["num_threads"] >= 1 for pool in found["blas"])
    assert "filepath" not in text
    for secret in (str(Path.home()), platform.node(), str(Path.cwd())):
        assert secret in ("", "/") or f'"{secret}' not in text
    assert f'"{getpass.getuser()}"' not in text


def test_a_cpu_without_proc_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "_CPU_INFO", tmp_path / "missing")
    assert describe_system()["cpu_flags"] == []


def test_cpu_flags_are_read(monkeypatch, tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 fma xyz\n\nmodel name\t: Other\nflags\t\t: avx512f\n")
    monkeypatch.setattr(system, "_CPU_INFO", info)
    found = describe_system()
    assert (found["cpu"], found["cpu_flags"]) == ("Some CPU", ["avx2", "fma"])


def git(folder, *arguments):
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_a_tracked_file_only(tmp_path):
    source = tmp_path / "source.py"
    source.write_text("1")
    assert system._git_commit(source) is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "--no-verify", "-m", "start")
    assert system._git_commit(source) is None  # like an environment inside somebody's repository
    git(tmp_path, "add", "source.py")
    git(tmp_path, "commit", "-q", "--no-verify", "-m", "add")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert system._git_commit(source) == commit
    source.write_text("2")
    assert system._git_commit(source) == f"{commit}-dirty"


def test_no_git_is_no_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert describe_system()["git_commit"] is None


def test_threads_are_limited_for_a_while():
    with fix_threads(1):
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    with pytest.raises(ConfigError, match="threads=0: expected 1 or more"):
        fix_threads(0)
