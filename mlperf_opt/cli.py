"""The face: argv -> command, help, and errors as one line.

Nothing heavy is imported before the words of the command line are known to be right, and numpy not before its number of
threads is.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import mlperf_opt
from mlperf_opt.errors import ConfigError, MlperfOptError, did_you_mean
from mlperf_opt.overrides import CommandLine, normalize, options, parse
from mlperf_opt.resources import resource_dir

if TYPE_CHECKING:
    from rich.console import Console

COMMANDS = {
    "optimize": "apply passes to a model and measure every step (may be left out)",
    "train": "train a network: train model=NAME [save=PATH] [train.epochs=...]",
    "generate": "go on with a text: generate model=NAME prompt=TEXT [length=200] [temperature=0]",
    "export": "write an ONNX file and compare it: export model=NAME 'passes=[...]' [save=PATH.onnx]",
    "compare": "compare runs: compare A B [C ...] [--fail-on 'quality_delta<-0.01']",
    "plot": "draw error against bytes: plot A [B ...] save=FILE.svg",
    "help": "explain a command, a pass, a model, a pipeline ...: help NAME",
}
_ABOUT = {
    "optimize": """--cfg job shows all settings; each is changed by NAME=VALUE, as in passes.prune.sparsity=0.7.
The folder of the results is named by hydra.run.dir=DIR, with -m by hydra.sweep.dir=DIR.""",
    "train": """It writes the model file and a page about it, by default below outputs/models/. Interrupted, it leaves
a checkpoint, and the same command goes on from there. model.weights=PATH starts from those weights.""",
    "generate": """What a model reads at once, its context, is the limit of prompt and length together; with rotary positions
passes=[kv_cache] passes.kv_cache.window=N goes on without one. model, data, passes, pipeline, runtime and seed are
those of a run (--cfg job shows them).

Texts:
    prompt=TEXT: what to go on with. Given more than once, all prompts are gone on with in one batch.
    stop=TEXT: a row ends before this text; given at most once.""",
    "export": """It takes the settings of a run (--cfg job shows them), applies the passes in their order, and shows how
onnxruntime does with the file, by default outputs/models/NAME.onnx.""",
    "plot": """A and B are run folders, sweep folders or CSV files: of a run every step is a point, of a sweep
the last step of each job. FILE ends in .svg or .png. Beside the points of lenet300 and lenet5 on
MNIST stand published ones.""",
}
_GROUPS = ("model", "data", "passes", "pipeline", "runtime", "measure")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_LONG_WORD = re.compile(r"(\S{60})\S{120,}(\S{60})")
_USAGE, _INTERRUPTED, _CLOSED = 2, 130, 141  # the last two as shells report SIGINT and SIGPIPE


def main(words: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status.

    0; 1 for a failed job or gate and for a row that is INVALID; 2 for a mistake or a file that can't be written; 130 where
    it was interrupted; 141 where whoever read the output has gone.
    """
    arguments = list(sys.argv[1:] if words is None else words)
    try:
        status = _dispatch(arguments)
        if sys.stdout is not None:  # None: the shell closed it (>&-)
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        _drop_output()
        return _CLOSED
    except MlperfOptError as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        return _USAGE
    except OSError as error:
        # A full disk, a folder without permission: the environment's fault, in one line.
        where = f" {_one_line(str(error.filename))}" if error.filename else ""
        print(f"error: cannot write or read{where}: {error.strerror or error}", file=sys.stderr)
        _drop_output()
        return _USAGE
    except MemoryError as error:
        print(f"error: not enough memory: {_one_line(str(error)) or 'smaller sizes may fit'}", file=sys.stderr)
        return _USAGE
    except KeyboardInterrupt as interrupt:
        print(": ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return _INTERRUPTED


def _one_line(text: str) -> str:
    """Messages repeat what the user typed: show what would move the cursor as escapes, and of a very long word its ends."""
    text = _LONG_WORD.sub(r"\1...\2", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _drop_output() -> None:
    """Send what is still in the buffer nowhere if it can't be written, or Python complains about it at the very end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(words: list[str]) -> int:
    command = words[0] if words else "help"
    if any(word in ("-h", "--help") for word in words):
        return _help([command] if command in COMMANDS else [])
    if command == "--version":
        print(f"mlperf_opt {mlperf_opt.__version__}")
        return 0
    if command == "help":
        return _help(words[1:])
    if command in COMMANDS:
        words = words[1:]
    elif "=" not in command and not command.startswith(("-", "~")):
        raise ConfigError(f"{command!r} is neither a command nor a setting{did_you_mean(command, COMMANDS)}")
    else:
        command = "optimize"
    if command in ("compare", "plot"):
        from mlperf_opt.commands import compare, plot

        return {"compare": compare, "plot": plot}[command].run(words, _console())
    return _run(command, normalize(parse(words)))


def _run(command: str, line: CommandLine) -> int:
    _fix_threads(line.value("runtime.threads") or "1")
    from mlperf_opt.commands import export, generate, optimize, train

    commands = {"optimize": optimize, "train": train, "generate": generate, "export": export}
    console = _console()
    with _notices(console):
        return commands[command].run(line, console)


@contextmanager
def _notices(console: Console) -> Iterator[None]:
    """Show what the package logs for whoever waits, and nobody else; afterwards the log is as it was."""
    import logging

    class ToConsole(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(record.getMessage(), style="dim")

    log, handler = logging.getLogger("mlperf_opt"), ToConsole()
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


def _fix_threads(threads: str) -> None:
    """Tell BLAS its threads before numpy loads it; a sweep over threads gets its limit from threadpoolctl alone."""
    if threads.isdigit():
        for name in _THREADS:
            os.environ[name] = threads


def _console() -> Console:
    from rich.console import Console

    class Face(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1, our word for a failed job

    # A pipe has no width of its own; rich would assume 80 columns and fold the tables, which are made for 100.
    width = None if sys.stdout is not None and sys.stdout.isatty() else 100
    return Face(markup=False, highlight=False, emoji=False, width=width)


def _help(topics: list[str]) -> int:
    if len(topics) > 1:
        raise ConfigError(f"help {' '.join(topics)}: expected one topic")
    if topics == ["compare"]:
        from mlperf_opt.commands import compare

        return compare.run(["--help"], _console())
    if topics and topics != ["help"]:
        print(_explain(topics[0]))
        return 0
    lines = [
        "usage: mlperf-opt [COMMAND] [SETTING=VALUE ...] [-m] [--config-dir DIR] [--cfg job]",
        "",
        "  mlperf-opt model=cnn 'passes=[quant,prune]'        or without quotes: passes=quant+prune",
        "  mlperf-opt -m model=mlp,cnn passes.prune.sparsity=0.5,0.9",
        "  mlperf-opt model=cnn pipeline=olympics",
        "",
        *_section("commands", COMMANDS),
        *(line for group in _GROUPS for line in _group(group)),
        "Every number is measured on the file that ships; results go to outputs/<date>/<time>/.",
    ]
    print("\n".join(lines))
    return 0


def _section(title: str, entries: dict[str, str]) -> list[str]:
    width = max(map(len, entries), default=0)
    return [f"{title}:", *(f"  {name:<{width}}  {text}" for name, text in entries.items()), ""]


def _yaml(group: str, name: str) -> str:
    """The text of an option of a group; ``pipeline=none`` has no file."""
    folder = resource_dir("pipelines") if group == "pipeline" else resource_dir("conf") / group
    path = folder / f"{name}.yaml"
    return path.read_text(encoding="utf-8") if path.exists() else "# the steps that `passes` lists\n"


def _group(group: str) -> list[str]:
    entries = {name: _yaml(group, name).partition("\n")[0].lstrip("# ") for name in options(group)}
    titles = {"passes": "passes ('passes=[a,b]', in this order)", "pipeline": "pipelines (pipeline=NAME)"}
    return _section(titles.get(group, f"{group}={'|'.join(entries)}"), entries)


def _explain(topic: str) -> str:
    """Everything that is called so, under one another: a command and a pass, say."""
    found = [*_command(topic), *_pass(topic)]
    choices = [group for group in _GROUPS if group != "passes" and topic in options(group)]
    found += [f"{group}={topic}\n\n{_yaml(group, topic)}" for group in choices]
    found += ["\n".join(_group(group)) for group in _GROUPS if group == topic]
    if not found:
        known = {*COMMANDS, *_GROUPS, *(name for group in _GROUPS for name in options(group))}
        raise ConfigError(f"help {topic}: no such topic{did_you_mean(topic, known)}")
    return "\n\n".join(part.rstrip() for part in found)


def _command(name: str) -> Iterator[str]:
    if name not in _ABOUT:
        return
    title = f"mlperf-opt {name}: {COMMANDS[name]}\n\n{_ABOUT[name]}"
    if name == "train":
        from mlperf_opt.training import TrainSettings

        recipes = [f"train={recipe}\n{_yaml('train', recipe)}" for recipe in options("train")]
        yield _with_docstring(title, TrainSettings, "\n".join(["Recipes (train.NAME=VALUE):\n", *recipes]))
    elif name == "generate":
        from mlperf_opt.sampling import SamplingSettings

        defaults = (resource_dir("conf") / "generate_config.yaml").read_text(encoding="utf-8")
        yield _with_docstring(title, SamplingSettings, f"Defaults (NAME=VALUE):\n\n{defaults}")
    else:
        yield title


def _pass(name: str) -> Iterator[str]:
    if name in options("passes"):
        from mlperf_opt.passes import PASSES

        defaults = f"Defaults (passes.{name}.NAME=VALUE):\n\n{_yaml('passes', name)}"
        yield _with_docstring(f"passes=[{name}]", PASSES[name], defaults)


def _with_docstring(title: str, what: type, defaults: str) -> str:
    import inspect

    return f"{title}\n\n{inspect.getdoc(what)}\n\n{defaults}".rstrip()
