"""What the documents tell a reader to type is right, and what they point to is there."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from mlperf_opt import cli

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docs/results.md", "docs/add_a_pass.md")]
DOCUMENTS += sorted(ROOT.glob("models/*/README.md"))
START = "python -m mlperf_opt"
PLACEHOLDERS = {"RUN_A": "run", "RUN_B": "run", "MODEL": "mlp", "PASSES": "'passes=[quant]'"}


def code_of(text):
    """Every line of a fenced block, and every inline code span."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def commands():
    """(document, command line) -> words after ``python -m mlperf_opt``, placeholders filled in."""
    found = {}
    for path in DOCUMENTS:
        for line in code_of(path.read_text(encoding="utf-8")):
            if line.startswith(f"{START} "):
                filled = re.sub("|".join(PLACEHOLDERS), lambda match: PLACEHOLDERS[match[0]], line.removeprefix(START))
                found[f"{path.relative_to(ROOT)}: {line}"] = shlex.split(filled, comments=True)
    return found


COMMANDS = commands()


def test_the_commands_are_found():
    """The main job, a sweep, a recipe, compare, train and help stand in the README alone."""
    assert sum(name.startswith("README.md: ") for name in COMMANDS) >= 7
    assert sum(name.startswith("docs/results.md: ") for name in COMMANDS) >= 4
    assert sum(name.startswith("models/") for name in COMMANDS) == len(list(ROOT.glob("models/*/README.md")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds one short run, for compare."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["passes=[]", "hydra.run.dir=run", "measure.seconds=0.004"]) == 0
    return folder


@pytest.mark.parametrize("name", COMMANDS, ids=list(map(ascii, COMMANDS)))
def test_a_command_of_a_document_is_taken(name, folder, monkeypatch, capsys):
    """Composed and checked whole, but not run: the other tests here run the jobs."""
    monkeypatch.chdir(folder)
    words = COMMANDS[name]
    shows = words[0] not in ("compare", "plot", "help")
    assert cli.main([*words, *(["--cfg", "job"] if shows else [])]) == 0
    out = capsys.readouterr().out
    if shows:
        assert all(job["model"]["name"] and "seed" in job for job in yaml.safe_load_all(out))
    if words[0] == "plot":
        (folder / words[-1].removeprefix("save=")).unlink()
    assert [path.name for path in folder.iterdir()] == ["run"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_points_to_is_there(path):
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    named = [code for code in code_of(text) if re.fullmatch(r"(?:mlperf_opt|tests|benchmarks|docs|conf)/[\w./]+", code)]
    named += [word for code in code_of(text) if code.startswith("python benchmarks/") for word in code.split()[1:2]]
    assert [link for link in links if not (path.parent / link).exists()] == []
    assert [name for name in named if not (ROOT / name).exists()] == []
    targets = re.findall(r"make (\w+)", " ".join(code_of(text)))
    known = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(targets) <= set(known)
