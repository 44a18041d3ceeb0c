"""The command line as a process of its own, for what a process can meet: signals, pipes, full disks."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAST = ["runtime=numpy", "measure.seconds=0.01", "measure.throughput_batch=64"]


def environment(**changes):
    kept = {key: value for key, value in os.environ.items() if key not in ("MLPERF_OPT_DATA", "NO_COLOR", "COLUMNS")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", **changes}


def command(*words):
    return [sys.executable, "-m", "mlperf_opt", *words]


def command_saving_often(*words):
    """The same with twenty checkpoints a second of training, not one each half minute."""
    code = "import sys; from mlperf_opt import cli, training; training.train.__kwdefaults__['checkpoint_seconds'] = 0.05;"
    return [sys.executable, "-c", f"{code} sys.exit(cli.main(sys.argv[1:]))", *words]


def run(folder, *words, preexec_fn=None, stdout=subprocess.PIPE, **changes):
    """Run to the end; stdout and stderr as text."""
    return subprocess.run(
        command(*words),
        cwd=folder,
        env=environment(**changes),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=preexec_fn,
    )


def leftovers(folder):
    """Files under temporary names."""
    return [path for path in Path(folder).rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
