"""export: apply passes, write the result as an ONNX file, and measure what that file does in onnxruntime."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console

from mlperf_opt.composition import MAIN, compose, expand, lint_folder, register_pipelines, to_yaml
from mlperf_opt.config import build_config, load
from mlperf_opt.data import Dataset
from mlperf_opt.errors import ConfigError, MlperfOptError
from mlperf_opt.evaluate import MeasureSettings, Subject
from mlperf_opt.extras import require_installed
from mlperf_opt.graph import Graph
from mlperf_opt.measure import Quality, fix_threads
from mlperf_opt.onnx_export import IR_VERSION, OPSET, export
from mlperf_opt.overrides import CommandLine
from mlperf_opt.report import export_table, save_path, write_bytes
from mlperf_opt.runner import apply_passes, branch_note
from mlperf_opt.runtimes import (
    NUMPY,
    ONNX,
    OnnxExecutable,
    Runtime,
    RuntimeOptions,
    agreement,
    difference,
    is_quantized,
    stepwise,
)
from mlperf_opt.steps import last_branch

Array = NDArray[Any]

HELP = "write an ONNX file: export model=NAME 'passes=[...]' [save=PATH.onnx]"


def run(line: CommandLine, console: Console) -> int:
    """Apply the passes of the configuration, write the ONNX file, read it back, and show how it does in onnxruntime.

    Returns:
        0; 1 where onnxruntime's outputs differ from ours by more than rounding.

    Raises:
        MlperfOptError: a wrong setting, a missing package, a graph that ONNX can't express, or a file that can't be written.
    """
    if line.multirun:
        raise ConfigError("export takes one model at a time, without -m")
    if line.config_dir is not None:
        lint_folder(line.config_dir)
    register_pipelines(line)
    # `save` is no setting of a run, so it has no place in the primary config
    added = [f"+{word}" if word.partition("=")[0] == "save" else word for word in line.overrides]
    (overrides,) = expand(replace(line, overrides=added))
    plain = compose(MAIN, overrides, line.config_dir)
    save = plain.pop("save", None)
    config = build_config(plain)
    if line.show:
        console.print(to_yaml([{**plain, "save": save}]), soft_wrap=True, end="")
        return 0
    path = save_path(f"outputs/models/{config.model.name}.onnx" if save is None else save, ".onnx")
    require_installed("export", "onnx", "onnxruntime")
    ours = NUMPY if config.runtime.name == ONNX.name else config.runtime.runtime
    if note := branch_note(config.steps):
        console.print(note, soft_wrap=True)
    with fix_threads(config.runtime.threads):
        with console.status("starting") as status:
            graph = apply_passes(config, ours, status.update)
        data = load(config)[1]
        content = export(graph)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
        facts = _show(graph, data, ours, path, config.measure, console)
    names = ", ".join(step.name for step in last_branch(config.steps)) or "no passes"
    console.print(
        f"{config.model.name} ({names}) written to {path}: {len(content):,} bytes, opset {OPSET}, IR version {IR_VERSION}, "
        "onnx.checker passed",
        soft_wrap=True,
    )
    for fact in facts:
        console.print(fact, soft_wrap=True)
    return 1 if facts else 0


def _show(graph: Graph, data: Dataset, ours: Runtime, path: Path, settings: MeasureSettings, console: Console) -> list[str]:
    """Print quality and agreement on the split that is measured, of the file as written; return what is beyond rounding."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MlperfOptError(f"cannot read {path}: {error.strerror}") from None
    inputs = data.held_out(settings.split).inputs

    def measured(runtime: Runtime) -> tuple[Quality, Array]:
        """Quality and logits. What has run is gone on return: onnxruntime keeps the memory of its largest call."""
        subject = Subject(graph, runtime, data, settings.batch, settings.split)
        return subject.quality, stepwise(subject.executable, inputs)

    reference, expected = measured(ours)
    rows, facts = [_row(ours.name, reference)], []
    for name, fuse in (("onnxruntime", True), ("onnxruntime, unfused", False)):
        quality, actual = measured(Runtime(name, partial(_written, content=content, fuse=fuse), traced=False))
        row = _row(name, quality) | asdict(agreement(expected, actual))
        if data.task == "completion":
            same = reference.outputs == quality.outputs
            row |= {"tokens": same.size, "equal_tokens": int(same.sum())}
        rows.append(row)
        fact = difference(expected, actual, is_quantized(graph))
        facts += [f"{name} disagrees with the {ours.name} runtime: {fact}"] if fact else []
    console.print(export_table(rows))
    return facts


def _written(graph: Graph, options: RuntimeOptions, *, content: bytes, fuse: bool) -> OnnxExecutable:
    return OnnxExecutable(graph, content, options.threads, fuse=fuse)


def _row(runtime: str, quality: Quality) -> dict[str, Any]:
    return {
        "runtime": runtime,
        "quality_metric": quality.metric,
        "quality": quality.value,
        "quality_low": quality.low,
        "quality_high": quality.high,
    }
