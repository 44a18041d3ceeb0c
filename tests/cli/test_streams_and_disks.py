"""What a process meets: closed pipes, disks that are full or read-only, narrow terminals, words that are no text."""

import ctypes
import errno
import os
import resource
import signal
import subprocess

import pandas as pd
import pytest
from cli_process import FAST, command, environment, leftovers, run

from mlperf_opt.artifacts import load_graph
from mlperf_opt.graph import verify

pytestmark = pytest.mark.cli


def no_file_beyond(size):
    """A full disk, as far as one process can have one: a write beyond ``size`` bytes of a file fails."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def assert_one_line(result, status, text):
    assert result.returncode == status, result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert text in result.stderr


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["passes=[]", *FAST]], ids=" ".join)
def test_a_reader_that_leaves_is_no_error(words, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        result = run(tmp_path, *words, stdout=pipe)
    assert result.stderr == ""
    assert result.returncode == 141


def test_head_takes_a_line_and_the_rest_is_lost_in_silence(tmp_path):
    producer = subprocess.Popen(
        command("--help"), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = subprocess.run(["head", "-1"], stdin=producer.stdout, capture_output=True, text=True, timeout=60, check=True)
    producer.stdout.close()
    _, err = producer.communicate(timeout=60)
    assert first.stdout.startswith("usage: mlperf-opt") and err == ""


def test_a_terminal_that_is_full_is_one_line(tmp_path):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        assert_one_line(run(tmp_path, "--help", stdout=full), 2, os.strerror(errno.ENOSPC))


def test_no_output_at_all_is_no_error(tmp_path):
    def close_stdout():
        os.close(1)

    result = run(tmp_path, "passes=[]", "hydra.run.dir=run", *FAST, stdout=None, preexec_fn=close_stdout)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "run" / "metrics.csv").exists()


def test_a_model_file_that_does_not_fit_is_one_line_and_a_row(tmp_path):
    """2,410 float32 parameters take more than 9,000 bytes; everything else of a run takes less."""
    result = run(tmp_path, "passes=[quant]", "hydra.run.dir=run", *FAST, preexec_fn=no_file_beyond(9000))
    assert_one_line(result, 2, "00-baseline.safetensors: File too large")
    rows = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert rows["status"].tolist() == ["INVALID"] and "File too large" in rows["reasons"][0]
    assert not leftovers(tmp_path)


def test_a_disk_without_room_for_the_description_leaves_nothing_half(tmp_path):
    result = run(tmp_path, "hydra.run.dir=run", *FAST, preexec_fn=no_file_beyond(100))
    assert_one_line(result, 2, "run.json: File too large")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_weights_file_that_does_not_fit_keeps_the_old_one(tmp_path):
    train = ["train", "model=mlp", "train.epochs=1", "save=m/weights.safetensors"]
    assert run(tmp_path, *train).returncode == 0
    old = (tmp_path / "m" / "weights.safetensors").read_bytes()
    # on a slow machine a checkpoint is due first, and doesn't fit either
    assert_one_line(run(tmp_path, *train, "seed=1", preexec_fn=no_file_beyond(9000)), 2, ": File too large")
    assert (tmp_path / "m" / "weights.safetensors").read_bytes() == old
    assert not leftovers(tmp_path)


@pytest.fixture
def mounted(tmp_path):
    """Return a function that mounts an empty tmpfs; without the right to, the test is skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("mounting needs root")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


@pytest.mark.parametrize("words", [["passes=[]"], ["-m", "seed=1,2"], ["train", "train.epochs=1"]], ids=" ".join)
def test_a_read_only_folder_is_one_line(words, mounted):
    folder = mounted("ro")
    assert_one_line(run(folder, *words, *(FAST if words[0] != "train" else [])), 2, "Read-only file system")
    assert list(folder.iterdir()) == []


def test_a_sweep_on_a_full_disk_ends_and_keeps_what_it_has(mounted):
    folder = mounted("size=40k")  # room for one job and a half
    result = run(folder, "-m", "seed=1,2", "hydra.sweep.dir=s", *FAST)
    assert_one_line(result, 2, "No space left on device")
    rows = pd.read_csv(folder / "s" / "0" / "metrics.csv")
    assert rows["status"].tolist() == ["VALID"] * 3
    for path in (folder / "s").rglob("*.safetensors"):
        assert verify(load_graph(path))
    assert not leftovers(folder)


@pytest.mark.parametrize("place", ["hydra.run.dir=file", "hydra.run.dir=/proc/nothing"])
def test_a_folder_that_cannot_be_made_is_one_line(place, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_one_line(run(tmp_path, place, "passes=[]", *FAST), 2, "error: cannot write or read ")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_page_of_a_project_is_not_overwritten(tmp_path):
    (tmp_path / "README.md").write_text("# My project\n")
    assert_one_line(run(tmp_path, "train", "save=weights.safetensors"), 2, "README.md is no model's page")
    assert run(tmp_path, "train", "save=m.safetensors", "train.epochs=1").returncode == 0
    assert (tmp_path / "README.md").read_text() == "# My project\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "m.md", "m.safetensors"]


def test_colour_is_for_those_who_ask(tmp_path):
    words = ["passes=[]", "hydra.run.dir=run", *FAST]
    assert "\x1b[3" in run(tmp_path, *words, FORCE_COLOR="1").stdout
    coloured = run(tmp_path, *words, FORCE_COLOR="1", NO_COLOR="1").stdout
    assert not [code for code in ("\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[36m") if code in coloured]


def test_a_pipe_is_as_wide_as_the_tables_and_plain(tmp_path):
    result = run(tmp_path, "passes=[quant]", *FAST, COLUMNS="20")
    assert result.returncode == 0 and "\x1b" not in result.stdout
    assert [line for line in result.stdout.splitlines() if line.startswith("1 quant")]
    assert max(map(len, result.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    "words", [[b"\xff"], [b"passes=[\xff]"], [b"model.weights=\xff"], [b"--\xff"], [b"--config-dir", b"\xff"]]
)
def test_bytes_that_are_no_text_are_one_line(words, tmp_path):
    result = subprocess.run(
        [*map(os.fsencode, command()), *words], cwd=tmp_path, env=environment(), capture_output=True, timeout=60, check=False
    )
    assert result.returncode == 2 and result.stdout == b""
    assert result.stderr.startswith(b"error: ") and result.stderr.count(b"\n") == 1
    assert b"\\udcff" in result.stderr
    assert list(tmp_path.iterdir()) == []


LIBC = ctypes.CDLL(None)


def bound_by_permissions():
    """Root may read and write everything; without these two rights it is bound by the owner's permissions like anybody."""
    bounding_set_drop, dac_override, dac_read_search = 24, 1, 2  # of prctl(2) and capabilities(7)
    for right in (dac_override, dac_read_search):
        LIBC.prctl(bounding_set_drop, right, 0, 0, 0)


@pytest.mark.parametrize(
    "name, words",
    [
        ("own.safetensors", ["model.weights=own.safetensors"]),
        ("own/pipelines/mine.yaml", ["--config-dir", "own", "pipeline=mine"]),
        ("m/metrics.csv", ["compare", "m", "m"]),
        ("mnist/train-images-idx3-ubyte", ["data=mnist", "data.root=."]),
    ],
)
def test_a_file_without_permission_is_one_line_and_nothing_is_written(name, words, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("passes: {}")
    path.chmod(0)
    before = sorted(tmp_path.rglob("*"))
    assert_one_line(run(tmp_path, *words, preexec_fn=bound_by_permissions), 2, f"{name}: Permission denied")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_without_permission_is_one_line(tmp_path):
    tmp_path.chmod(0o555)
    late = ["export", "save=x.onnx"], ["plot", ".", "save=new/x.svg"]  # refused early: there is nothing to plot here
    for words in (["passes=[]", *FAST], ["-m", "seed=1,2", *FAST], ["train", "train.epochs=1"], *late):
        assert_one_line(run(tmp_path, *words, preexec_fn=bound_by_permissions), 2, "Permission denied")
    assert list(tmp_path.iterdir()) == []
