"""Other machines: a CPU without AVX-512, no numba, a second process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compiled_cases import model, runtime
from on_another_cpu import compute

from mlperf_opt.kernels.cache import cache_folder

HERE = Path(__file__).parent
CLOSE = 1e-5


@pytest.fixture(scope="module")
def here():
    """What this CPU computes."""
    return compute()


@pytest.mark.slow  # it compiles every kernel; CI runs it for AVX2
@pytest.mark.parametrize("cpu", [pytest.param("haswell", id="AVX2"), pytest.param("generic", id="no vectors to speak of")])
def test_a_cpu_without_avx512_gives_the_same(cpu, here, tmp_path):
    """Integers to the last bit, floats to their last places."""
    target = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
    env = {**os.environ, **target, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, str(HERE / "on_another_cpu.py"), str(tmp_path / "values.npz")]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    there = np.load(tmp_path / "values.npz")
    assert there["features"].size == 0 and not there["amx"], "it was compiled for another CPU than was asked for"
    assert set(there.files) == {*here, "features", "amx"}
    for name, value in here.items():
        assert there[name].dtype == value.dtype, name
        if value.dtype.kind in "iu" or name.startswith(("mlp static", "cnn static", "lenet5 static")):
            np.testing.assert_array_equal(there[name], value, err_msg=name)
        else:
            np.testing.assert_allclose(there[name], value, rtol=CLOSE, atol=CLOSE * np.abs(value).max(), err_msg=name)


_JOB = ["model=mlp", "passes=[quant]", "measure.seconds=0.02", "hydra.run.dir=out"]
_WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
from mlperf_opt import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def _without_numba(folder, *words):
    command = [sys.executable, "-c", _WITHOUT_NUMBA, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_no_numba_is_one_line_and_nothing_is_written(tmp_path):
    result = _without_numba(tmp_path, *_JOB)
    assert result.returncode == 2 and list(tmp_path.iterdir()) == []
    assert len(result.stderr.strip().splitlines()) == 1
    assert "numba" in result.stderr and "runtime=numpy" in result.stderr and "Traceback" not in result.stderr


def test_no_numba_and_the_numpy_runtime_works(tmp_path):
    result = _without_numba(tmp_path, *_JOB, "runtime=numpy")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "metrics.csv").read_text(encoding="utf-8").count("VALID") == 2


def _files(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


_RUN = """
import sys
sys.path.insert(0, {folder!r})
from compiled_cases import model, runtime
for before in ("none", "static", "dynamic"):
    graph, inputs = model("cnn", before)
    runtime().prepare(graph)(inputs[:3])
from mlperf_opt.kernels import machine
print(dict(machine.run.stats.cache_hits), dict(machine.run.stats.cache_misses))
print({{kernel.compiled.cache_hits for kernel in machine.KERNELS.values() if kernel.compiled}})
"""


def test_a_second_process_compiles_nothing(tmp_path):
    """Told by the cache, not by a clock: everything is read from it, and nothing is written."""
    for before in ("none", "static", "dynamic"):
        runtime().prepare(model("cnn", before)[0])
    assert _files(cache_folder()), "this process has filled the cache"
    copy = tmp_path / "mlperf_opt" / cache_folder().name
    shutil.copytree(cache_folder(), copy)
    before = _files(copy)
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    code = _RUN.format(folder=str(HERE))
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True)
    assert _files(copy) == before
    run, kernels = result.stdout.splitlines()
    assert run.endswith("{}") and ": 1}" in run and kernels == "{1}", result.stdout
