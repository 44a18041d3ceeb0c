"""The wheel, installed away from the checkout, in a folder that holds somebody else's conf/ and models/."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import mlperf_opt

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_carries_its_data_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / "mlperf_opt").rglob("*.py"):
        assert str(path.relative_to(ROOT)) in names
    for name in (
        *(
            "conf/config.yaml",
            "conf/passes/quant.yaml",
            "pipelines/olympics.yaml",
            "data/digits.npz",
            "report/published.csv",
        ),
        *(f"models/{model}/weights.safetensors" for model in ("mlp", "cnn", "transformer", "lenet300", "lenet5", "chargpt")),
        *("conf/.mlperf_opt", "models/.mlperf_opt", "pipelines/.mlperf_opt"),
    ):
        assert f"mlperf_opt/{name}" in names
    assert not [n for n in names if not n.startswith(("mlperf_opt/", "mlperf_opt-"))]


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The wheel installed into a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    return target


def test_the_console_script_is_the_same_program(site, tmp_path):
    script = next((site / "bin").glob("mlperf-opt*"))
    command = [sys.executable, "-P", str(script)]
    env = {**os.environ, "PYTHONPATH": str(site)}
    version, mistake = (
        subprocess.run([*command, word], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
        for word in ("--version", "passes=[quant,prun]")
    )
    assert (version.returncode, version.stdout) == (0, f"mlperf_opt {mlperf_opt.__version__}\n")
    assert mistake.returncode == 2 and "did you mean 'prune'" in mistake.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runtime", ["numpy", pytest.param("compiled", marks=pytest.mark.slow)])
def test_the_main_job_runs_beside_foreign_folders(site, runtime, tmp_path):
    """The kernels' sources are in the wheel, says another test; to compile them for a new place takes half a minute."""
    target, work = site, tmp_path / "work"
    for foreign in ("conf", "models"):
        (work / foreign).mkdir(parents=True)
        (work / foreign / "__init__.py").write_text("raise RuntimeError('a foreign package was imported')")
    (work / "conf" / "config.yaml").write_text("hydra: {run: {dir: /nowhere}}")
    # -P -S and a path of its own: the checkout's editable install can't be what is found
    found = f"import sys; sys.path[:0] = [{str(target)!r}]; sys.path.append({sysconfig.get_paths()['purelib']!r})"
    code = f"{found}; import mlperf_opt; assert mlperf_opt.__file__.startswith({str(target)!r}); from mlperf_opt import cli"
    arguments = ["model=cnn", "passes=[quant,prune]", f"runtime={runtime}", "measure.seconds=0.02"]
    command = [sys.executable, "-P", "-S", "-c", f"{code}; sys.exit(cli.main({arguments!r}))"]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}  # kernels of a place that is soon gone
    result = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert len(list(work.glob("outputs/*/*/02-prune.safetensors"))) == 1


@pytest.mark.slow  # CI runs it
def test_everything_that_reads_a_folder_of_the_package_finds_it(site, tmp_path):
    """Each command once, in one process: recipes, models, pipelines and pages of help come out of the wheel."""
    fast = ["runtime=numpy", "measure.seconds=0.004"]
    lines = [
        ["--help"],
        *(["help", topic] for topic in ("prune", "train", "cnn", "olympics", "compare")),
        ["train", "model=mlp", "train.epochs=2", "save=own/weights.safetensors"],
        ["model.weights=own/weights.safetensors", "pipeline=olympics", "passes.finetune.epochs=1", "hydra.run.dir=a", *fast],
        ["model=transformer", "passes=[profile,quant,kv_cache]", "hydra.run.dir=b", *fast],
        ["-m", "model=mlp,cnn", "passes=[prune]", "hydra.sweep.dir=c", *fast],
        ["compare", "a", "a"],
        ["compare", "c", "c", "--fail-on", "quality_delta<-0.01"],
    ]
    found = f"import sys; sys.path[:0] = [{str(site)!r}]; sys.path.append({sysconfig.get_paths()['purelib']!r})"
    code = f"{found}; from mlperf_opt import cli; assert cli.__file__.startswith({str(site)!r})"
    command = [sys.executable, "-P", "-S", "-c", f"{code}; print([cli.main(line) for line in {lines!r}])"]
    # to compile the coder of files for a new place takes longer than all this
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert result.stderr == "" and result.stdout.splitlines()[-1] == str([0] * len(lines))
    assert {p.name for p in tmp_path.iterdir()} == {"own", "a", "b", "c"}
    assert (tmp_path / "c" / "summary.csv").exists() and (tmp_path / "a" / "05-int8.safetensors").exists()
