"""train: make the weights that models/ ships, or your own."""

from __future__ import annotations

import itertools
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mlperf_opt.artifacts import save_graph
from mlperf_opt.composition import TRAIN, compose, expand, lint_folder, to_yaml
from mlperf_opt.config import ModelSettings, RuntimeSettings, check_fit, check_seed, data_settings, model_settings
from mlperf_opt.data import Dataset
from mlperf_opt.errors import ConfigError, did_you_mean
from mlperf_opt.evaluate import Subject, text_note, text_quality
from mlperf_opt.graph import Graph, to_text
from mlperf_opt.measure import Quality, fix_threads
from mlperf_opt.overrides import CommandLine
from mlperf_opt.report import save_path, write_text
from mlperf_opt.resources import resource_dir
from mlperf_opt.runtimes import NUMPY
from mlperf_opt.settings import build_settings
from mlperf_opt.training import EpochReport, StepReport, TrainSettings, check_trainable, train

HELP = "train a network: train model=NAME [save=PATH] [train.epochs=...]"
_SAME_RECIPE = ("model", "seed", "save", "threads", "data.root")  # what the reasons for a recipe are true beside
_KEYS = ("model", "data", "train", "seed", "save", "threads")


def run(line: CommandLine, console: Console) -> int:
    """Train, save the model file and a README beside it, and show its quality.

    Interrupted, it leaves a checkpoint beside the file; the same command goes on from there to the same weights.

    Raises:
        MlperfOptError: a wrong setting, missing data, or a file that can't be written.
    """
    if line.multirun:
        raise ConfigError("train takes one model at a time, without -m")
    for word in line.overrides:
        if word.lstrip("+").startswith("hydra"):
            raise ConfigError(f"{word}: no setting of train; the file that it writes is chosen by save=PATH")
    if line.config_dir is not None:
        lint_folder(line.config_dir)
    (overrides,) = expand(line)
    plain = compose(TRAIN, overrides, line.config_dir)
    for key in plain:
        if key not in _KEYS:
            raise ConfigError(f"{key}: no such setting of train{did_you_mean(key, _KEYS)}")
    for key in ("model", "data", "train"):
        if not isinstance(plain.get(key), dict):
            raise ConfigError(f"{key}={plain.get(key)}: expected keys and values")
    model, settings = model_settings(plain["model"]), build_settings(TrainSettings, plain["train"], "train")
    seed, source = check_seed(plain.get("seed")), data_settings(plain["data"], model)
    threads = build_settings(RuntimeSettings, {"threads": plain.get("threads")}, "runtime").threads
    path = _path(plain.get("save"), model.name)
    if line.show:
        console.print(to_yaml([plain]), soft_wrap=True, end="")
        return 0
    data = source.load()
    # `model.weights` is where training starts from
    graph = model.trained() if model.weights else model.untrained(seed)
    check_fit(graph, data)
    check_trainable(graph, settings)  # here too: nothing is shown or written yet
    if data.tokenizer is not None:
        graph = replace(graph, tokenizer=data.tokenizer.to_data())
    started = time.perf_counter()
    with fix_threads(1):
        try:
            trained = _train(graph, data, settings, seed, path, threads, console)
            saved = save_graph(trained, path)
            quality = Subject(trained, NUMPY, data, 1).quality
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_how_to_go_on(_checkpoint_path(path))) from None
    write_text(_readme_path(path), _readme(model, data, plain, trained, quality, saved.sha256, overrides))
    _checkpoint_path(path).unlink(missing_ok=True)
    console.print(f"test {_worded(quality, data)}; trained in {time.perf_counter() - started:.1f} s", soft_wrap=True)
    console.print(f"written to {path} ({saved.file_bytes:,} bytes, sha256 {saved.sha256})", soft_wrap=True)
    return 0


def _path(save: Any, name: str) -> Path:
    """Return where the model file goes, after checking that it and the page beside it can go there."""
    path = save_path(f"outputs/models/{name}/weights.safetensors" if save is None else save, ".safetensors")
    page = _readme_path(path)
    if page.exists() and not _is_ours(page):
        raise ConfigError(f"save={path}: {page} is no model's page, and would be overwritten; choose another folder")
    return path


def _readme_path(path: Path) -> Path:
    """README.md beside weights.safetensors; any other file gets a page of its own name: a folder can hold several."""
    return path.with_name("README.md" if path.stem == "weights" else f"{path.stem}.md")


def _checkpoint_path(path: Path) -> Path:
    return path.with_suffix(".checkpoint")


def _how_to_go_on(checkpoint: Path) -> str:
    if not checkpoint.exists():
        return "no checkpoint was written"
    return f"the same command goes on from the checkpoint {checkpoint}"


def _is_ours(page: Path) -> bool:
    try:
        return re.match(r"# [a-z0-9_]+: \w+\n", page.read_text(encoding="utf-8", errors="replace")) is not None
    except OSError as error:
        raise ConfigError(f"cannot read {page}: {error.strerror}") from None


def _train(
    graph: Graph, data: Dataset, settings: TrainSettings, seed: int, path: Path, threads: int, console: Console
) -> Graph:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    path.parent.mkdir(parents=True, exist_ok=True)
    # a narrow bar: the text beside it must fit into 80 columns
    bar = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=None)
        known = ""

        def move(step: StepReport) -> None:
            progress.update(task, completed=step.step, total=step.steps, description=f"loss {step.loss:.4f}{known}")

        def report(epoch: EpochReport) -> None:
            nonlocal known
            known = f" train {epoch.accuracy:6.2%}"
            if data.task == "language":
                nats = text_quality(NUMPY.prepare(epoch.graph), data.calibration).value
                known = f" calibration {nats:.4f} nats"
            last = epoch.epoch == epoch.epochs
            if not console.is_terminal and (last or epoch.epoch % max(1, epoch.epochs // 10) == 0):
                console.print(f"epoch {epoch.epoch}/{epoch.epochs} loss {epoch.loss:.4f}{known} {epoch.seconds:.2f} s")

        return train(
            graph,
            data,
            settings,
            seed=seed,
            progress=report,
            stepped=move if console.is_terminal else None,
            checkpoint=_checkpoint_path(path),
            threads=threads,
        ).graph


def _reasons(name: str) -> list[str]:
    """The comment at the top of conf/train/<name>.yaml, but for its first line: how the recipe was chosen."""
    path = resource_dir("conf") / "train" / f"{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    comments = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    return [line.lstrip("# ") for line in comments[1:]]


def _worded(quality: Quality, data: Dataset) -> str:
    note = f", {text_note(quality, data, 'test')}" if data.task == "language" else ""
    return f"{quality.metric} {quality.value:.4f} (95 % interval {quality.low:.4f} to {quality.high:.4f}){note}"


def _readme(
    model: ModelSettings,
    data: Dataset,
    plain: dict[str, Any],
    graph: Graph,
    quality: Quality,
    sha256: str,
    overrides: list[str],
) -> str:
    parameters = sum(weight.values.size for weight in graph.parameters().values())
    length = data.calibration.inputs.shape[1] if data.calibration.inputs.ndim == 2 else 1
    flops = 2 * graph.macs({"N": 1, "T": length})
    recipe = "\n".join(f"- {key}: {value}" for key, value in plain["train"].items())
    as_shipped = all(word.partition("=")[0] in _SAME_RECIPE for word in overrides)
    why = " ".join(_reasons(model.name)) if as_shipped else f"Settings of conf/train/{model.name}.yaml, changed as below."
    command = shlex.join(["python", "-m", "mlperf_opt", "train", *overrides])
    return f"""# {model.name}: {model.family}

{parameters:,} parameters, {flops:,} FLOPs a sample. Trained on the {len(data.train):,} training samples of `{data.name}`;
every choice was made on its {len(data.calibration):,} calibration samples.

Test {_worded(quality, data)} on {len(data.test):,} samples that no choice has seen.

```
{to_text(graph)}
```

## Recipe

{why}

{recipe}
- seed: {plain["seed"]}

## Rebuild

```
{command}
```

The file's SHA-256 is `{sha256}`. Another BLAS or CPU sums in another order, so a rebuild there may differ in the last bits.
"""
