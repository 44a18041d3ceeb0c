"""generate: let a trained network go on with a text."""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from mlperf_opt.artifacts import is_model_file, load_graph
from mlperf_opt.composition import GENERATE, compose, expand, lint_folder, register_pipelines, to_yaml
from mlperf_opt.config import RunConfig, build_config, check_fit
from mlperf_opt.data import Tokenizer, tokenizer_from_data
from mlperf_opt.data.dataset import Array
from mlperf_opt.errors import ConfigError, DataError, did_you_mean
from mlperf_opt.graph import Graph
from mlperf_opt.measure import fix_threads
from mlperf_opt.overrides import CommandLine
from mlperf_opt.passes import KvCache
from mlperf_opt.runner import apply_passes, branch_note
from mlperf_opt.runtimes import continuations
from mlperf_opt.sampling import SamplingSettings, choose
from mlperf_opt.settings import build_settings
from mlperf_opt.steps import last_branch

HELP = "go on with a text: generate model=NAME prompt=TEXT [length=200] [temperature=0]"
_TEXTS = ("prompt", "stop")  # any signs: Hydra's grammar never sees them
_SAMPLING = tuple(field.name for field in fields(SamplingSettings))
_KEYS = (*_TEXTS, *_SAMPLING, "model", "data", "passes", "pipeline", "runtime", "seed")
_QUOTED = 40  # characters of a prompt in an error


def run(line: CommandLine, console: Console) -> int:
    """Write what the network makes of each prompt, as it comes.

    Raises:
        MlperfOptError: a wrong setting, a prompt that is empty, too long or has symbols that the model doesn't know, before
            any pass is applied. What is too long with a window is refused after the passes, before the first token.
    """
    if line.multirun:
        raise ConfigError("generate takes one model at a time, without -m")
    if line.config_dir is not None:
        lint_folder(line.config_dir)
    _check_keys(line)
    register_pipelines(line)
    texts = {key: _texts(line, key) for key in _TEXTS}
    (overrides,) = expand(replace(line, overrides=[word for word in line.overrides if _key(word) not in _TEXTS]))
    plain = compose(GENERATE, overrides, line.config_dir)
    settings = build_settings(SamplingSettings, {name: plain[name] for name in _SAMPLING if name in plain}, "")
    config = build_config({key: value for key, value in plain.items() if key not in _SAMPLING} | {"measure": {}})
    if line.show:
        console.print(to_yaml([plain | texts]), soft_wrap=True, end="")
        return 0
    if not texts["prompt"]:
        raise ConfigError("prompt: missing; give prompt=TEXT, more than once for several")
    if len(texts["stop"]) > 1:
        raise ConfigError(
            f"stop: given {len(texts['stop'])} times, {' and '.join(map(_cut, texts['stop']))}; expected one text"
        )
    if "" in texts["stop"]:
        raise ConfigError("stop= is empty: expected at least one symbol; without stop=TEXT a row ends after length tokens")
    with fix_threads(config.runtime.threads):
        graph = _network(config, line)
        _generate(config, graph, settings, texts["prompt"], "".join(texts["stop"]), console)
    return 0


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _texts(line: CommandLine, key: str) -> list[str]:
    return [word.partition("=")[2] for word in line.overrides if _key(word) == key]


def _check_keys(line: CommandLine) -> None:
    """Refuse what is no setting here: Hydra, which is asked next, doesn't know of the texts."""
    for word in line.overrides:
        key = _key(word).lstrip("~")
        name = re.split(r"[./@:]", key)[0]
        of_the_user = line.config_dir is not None and (line.config_dir / name).is_dir()
        if name not in _KEYS and not of_the_user:
            raise ConfigError(f"{key}: no such setting of generate{did_you_mean(name, _KEYS)}")


def _generate(
    config: RunConfig, graph: Graph, settings: SamplingSettings, prompts: list[str], stop: str, console: Console
) -> None:
    runtime = config.runtime.runtime
    tokenizer = _tokenizer(config, graph)
    ids = [_encoded(prompt, tokenizer) for prompt in prompts]
    # a window may lift the limit of the context, which only the graph behind the passes knows
    if not any(isinstance(step.apply, KvCache) and step.apply.window for step in last_branch(config.steps)):
        _check_room(prompts, ids, settings.length, graph)
    if note := branch_note(config.steps):
        console.print(note, style="dim", soft_wrap=True)
    if config.steps:
        with console.status("starting") as status:
            graph = apply_passes(config, runtime, status.update)
        _check_room(prompts, ids, settings.length, graph)
    executable = runtime.prepare(graph)
    generators = [np.random.default_rng((config.seed, row)) for row in range(len(ids))]
    readers = [_Reader(tokenizer, prompt, stop) for prompt in prompts]
    _show(readers, console)
    steps, started, first = 0, time.perf_counter(), 0.0
    padded, lengths = _padded(ids)

    def pick(logits: Array) -> Array:
        return choose(settings, logits, generators)

    for chosen in continuations(executable, padded, settings.length, lengths=lengths, pick=pick):
        steps += 1
        first = first or time.perf_counter() - started
        for reader, token in zip(readers, chosen.tolist(), strict=True):
            reader.read(token)
        _show(readers, console)
        if all(reader.done for reader in readers):
            break
    seconds = time.perf_counter() - started
    for reader in readers:
        reader.finish()
    _show(readers, console, last=True)
    console.print(
        f"{sum(reader.count for reader in readers):,} tokens in {seconds:.2f} s: {steps * len(ids) / seconds:,.0f} tokens/s"
        f" in a batch of {len(ids)}, the first after {first * 1000:.1f} ms",
        style="dim",
        soft_wrap=True,
    )


def _network(config: RunConfig, line: CommandLine) -> Graph:
    """The model that the settings describe; where only a file is given, what is in it: quantized, cached, of any sizes."""
    described = {_key(word) for word in line.overrides if _key(word).startswith("model")} - {"model.weights"}
    path = config.model.weights
    if path is not None and not config.steps and not described and is_model_file(Path(path)):
        return load_graph(Path(path))
    return config.model.trained()


def _tokenizer(config: RunConfig, graph: Graph) -> Tokenizer:
    if graph.tokenizer is not None:
        return tokenizer_from_data(graph.tokenizer)
    # a file without one: `transformer`, or plain tensors; the data set knows what the tokens stand for
    if any(spec.dtype != "int64" for spec in graph.inputs.values()):
        raise ConfigError(f"model={graph.name} reads no text, so it can't go on with a prompt; chargpt and transformer do")
    data = config.data.load()
    check_fit(graph, data)
    if data.tokenizer is None:
        raise ConfigError(f"data={data.name} is no text, and the file of model={graph.name} doesn't say what its tokens are")
    return data.tokenizer


def _encoded(prompt: str, tokenizer: Tokenizer) -> Array:
    if not prompt:
        raise ConfigError("prompt= is empty: expected at least one symbol")
    try:
        return tokenizer.encode(prompt)
    except DataError as error:
        raise ConfigError(f"prompt={_cut(prompt)}: {error}") from None


def _check_room(prompts: list[str], ids: list[Array], length: int, graph: Graph) -> None:
    """Raise `ConfigError` unless the graph has places for every prompt and ``length`` tokens behind it."""
    limit = graph.limit
    if limit is None:
        return
    for prompt, tokens in zip(prompts, ids, strict=True):
        count = len(tokens)
        if count > limit:
            raise ConfigError(
                f"prompt={_cut(prompt)}: {count} tokens; expected at most {limit}, the context of {graph.name}"
            )
        # the last token is only shown, never fed back, so it needs no place
        if count + length - 1 > limit:
            room = f"at most {limit + 1 - count} behind a prompt of {count} tokens"
            raise ConfigError(f"length={length}: expected {room}, for the context of {graph.name} is {limit}")


def _cut(prompt: str) -> str:
    return prompt if len(prompt) <= _QUOTED else f"{prompt[:_QUOTED]}..."


def _padded(ids: Sequence[Array]) -> tuple[Array, Array]:
    """Return rows of different lengths as one array (N, longest), zeros behind them, and their lengths (N,)."""
    lengths = np.array([len(row) for row in ids])
    padded = np.zeros((len(ids), lengths.max()), np.int64)
    for row, tokens in zip(padded, ids, strict=True):
        row[: len(tokens)] = tokens
    return padded, lengths


class _Reader:
    """The text of one row: characters as soon as all their bytes are there, up to the stop text, which isn't shown."""

    def __init__(self, tokenizer: Tokenizer, prompt: str, stop: str) -> None:
        self.count = 0
        self.done = False
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._text = ""  # generated
        self._ready = prompt  # to be shown
        self._shown = 0  # characters of `_text` that were ready

    def read(self, token: int) -> None:
        if self.done:
            return
        self.count += 1
        self._text += self._decoder.decode(self._tokenizer.decode([token]))
        found = self._text.find(self._stop) if self._stop else -1
        self.done = found >= 0
        self._release(found if self.done else len(self._text) - self._begun())

    def finish(self) -> None:
        """Nothing more comes: release what was held back."""
        if not self.done:
            self._text += self._decoder.decode(b"", final=True)
            self._release(len(self._text))
            self.done = True

    def take(self) -> str:
        """Return what is ready and wasn't taken yet."""
        ready, self._ready = self._ready, ""
        return ready

    def _begun(self) -> int:
        """Characters at the end with which the stop text may begin."""
        starts = range(min(len(self._stop), len(self._text)), 0, -1)
        return next((n for n in starts if self._text.endswith(self._stop[:n])), 0)

    def _release(self, end: int) -> None:
        self._ready += self._text[self._shown : end]
        self._shown = max(self._shown, end)


def _show(readers: list[_Reader], console: Console, last: bool = False) -> None:
    """Show the first row as it comes, and the others one below the other at the end."""
    text = readers[0].take()
    if last:
        text += "".join(f"\n\n{reader.take()}" for reader in readers[1:]) + "\n\n"
    if text:  # not by the console, which takes longer for a token than the network
        file = console.file
        file.write(_encodable(_visible(text) if console.is_terminal else text, getattr(file, "encoding", None) or "utf-8"))
        file.flush()


def _visible(text: Iterable[str]) -> str:
    """A model may write anything: show what would move the cursor as escapes."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _encodable(text: str, encoding: str) -> str:
    """The text itself, but for what a file of that encoding can't hold: escapes."""
    return text.encode(encoding, "backslashreplace").decode(encoding)
