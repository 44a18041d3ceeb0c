"""The command line in this process: what it says, and that a refusal leaves nothing behind."""

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from mlperf_opt import cli


class Answer(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def say(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLPERF_OPT_DATA", raising=False)

    def run(*words):
        capsys.readouterr()
        status = cli.main(list(words))
        return Answer(status, *capsys.readouterr())

    return run


def everything_below(folder):
    """Path -> content of every file, and None for folders."""
    found = {}
    for parent, folders, files in os.walk(folder):
        found |= {str(Path(parent, name)): None for name in folders}
        found |= {str(Path(parent, name)): Path(parent, name).read_bytes() for name in files}
    return found


@pytest.fixture
def assert_refused(say, tmp_path):
    """Return a function that asserts: one line, exit 2, nothing written, and ``text`` is in the line."""

    def check(words, text):
        before = everything_below(tmp_path)
        answer = say(*words)
        assert answer.status == 2, answer
        assert answer.out == ""
        assert answer.err.startswith("error: ") and answer.err.endswith("\n")
        assert answer.err.count("\n") == 1, answer.err
        assert text in answer.err
        assert everything_below(tmp_path) == before

    return check
