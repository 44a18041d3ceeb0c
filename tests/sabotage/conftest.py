"""What the sabotage tests share: a run that is healthy before something is broken."""

import pandas as pd
import pytest

from mlperf_opt import cli

FAST = ("measure.seconds=0.004", "measure.throughput_batch=16")
SEEN_HEALTHY = set()  # a run that passed once need not pass again before each way to break it


@pytest.fixture
def rows(tmp_path, monkeypatch, capsys):
    """Return a function that runs a job and gives (exit status, rows of metrics.csv, stderr)."""
    monkeypatch.chdir(tmp_path)

    def execute(*arguments):
        folder = f"run{len(list(tmp_path.iterdir()))}"
        status = cli.main([*arguments, f"hydra.run.dir={folder}", *FAST])
        path = tmp_path / folder / "metrics.csv"
        return status, pd.read_csv(path) if path.exists() else None, capsys.readouterr().err

    return execute


@pytest.fixture
def healthy(rows):
    """Return a function that runs a job and checks that nothing is wrong with it yet."""

    def check(*arguments):
        if arguments in SEEN_HEALTHY:
            return
        status, table, _ = rows(*arguments)
        assert status == 0 and (table["status"] == "VALID").all() and table["quality_ok"].all()
        SEEN_HEALTHY.add(arguments)

    return check
