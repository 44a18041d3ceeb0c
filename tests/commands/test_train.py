"""train: what is shown meanwhile, on a terminal and elsewhere."""

import io
import re

import pytest
from rich.console import Console
from rich.progress import Progress

from mlperf_opt.commands import train as command
from mlperf_opt.overrides import CommandLine

LONGER = ["model=mlp", "train.epochs=12"]  # of 32 steps each


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that trains with a console as wide as a small terminal, and returns what was shown."""

    def start(overrides, terminal):
        monkeypatch.chdir(tmp_path)
        console = Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None)
        assert command.run(CommandLine([*overrides, "save=w.safetensors"]), console) == 0
        return console.file.getvalue()

    return start


@pytest.fixture
def moves(monkeypatch):
    """The bar's task after each of its moves: steps done, of how many, text, and whether the time left is known."""
    seen, update = [], Progress.update

    def note(progress, number, **changes):
        update(progress, number, **changes)
        task = progress.tasks[number]
        seen.append((task.completed, task.total, task.description, task.time_remaining is not None))

    monkeypatch.setattr(Progress, "update", note)
    return seen


def test_on_a_terminal_the_bar_moves_with_every_step(run, moves):
    shown = run(LONGER, terminal=True)
    assert [move[:2] for move in moves] == [(step, 12 * 32) for step in range(1, 385)]
    losses = [float(re.match(r"loss (\d+\.\d{4})", text).group(1)) for _, _, text, _ in moves]
    assert losses[0] > 1.5 and losses[-1] < 0.5 * losses[0] and len(set(losses)) > 100
    assert all(known for *_, known in moves[2:]), "the time left, from the third step on"
    assert "epoch" not in shown and "384/384" in shown


def test_the_bar_fits_into_a_small_terminal(run):
    """The longest one: nats of the calibration split, thousands of steps."""
    last = run(LONGER, terminal=True).split("\r")[-1].splitlines()[0]
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last)
    longest = len(text.rstrip()) - len(re.search(r"loss.*%", text).group()) + len("loss 2.5432 calibration 2.5432 nats")
    assert longest + len("4000/4000") - len("384/384") <= 80


def test_elsewhere_every_tenth_of_the_epochs_is_a_line(run, moves):
    *lines, _quality, _written = run(["model=mlp", "train.epochs=20"], terminal=False).splitlines()
    assert [line.split()[1] for line in lines] == [f"{epoch}/20" for epoch in range(2, 21, 2)]
    assert all(re.fullmatch(r"epoch \d+/20 loss \d\.\d{4} train +\d+\.\d\d% \d+\.\d\d s", line) for line in lines)
    assert moves == []


def test_a_page_tells_how_its_own_recipe_was_chosen(run, tmp_path):
    """The reasons for ours, which speak of steps and minutes, aren't those for settings of the user's."""
    reasons = " ".join(command._reasons("mlp"))
    run(["model=mlp", "seed=1"], terminal=False)
    assert reasons and reasons in (tmp_path / "w.md").read_text(encoding="utf-8")
    run(["model=mlp", "train.epochs=1"], terminal=False)
    changed = (tmp_path / "w.md").read_text(encoding="utf-8")
    assert reasons not in changed and "\nSettings of conf/train/mlp.yaml, changed as below.\n\n- epochs: 1\n" in changed
