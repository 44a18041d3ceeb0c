"""One run: apply the passes, save every step, read it back, measure that, and record it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlperf_opt.artifacts import SavedModel, load_graph, save_graph
from mlperf_opt.config import RunConfig, load, load_without_data
from mlperf_opt.data import Dataset
from mlperf_opt.errors import MlperfOptError
from mlperf_opt.evaluate import Subject, exactness, measure
from mlperf_opt.graph import Graph, graph_hash, verify
from mlperf_opt.measure import describe_system, fix_threads
from mlperf_opt.passes import PassContext, PassResult
from mlperf_opt.records import Record
from mlperf_opt.report import markdown, run_grid, run_notes, write_bytes, write_json, write_metrics, write_table, write_text
from mlperf_opt.runtimes import Runtime
from mlperf_opt.steps import BASELINE, Step, last_branch, lineage

Show = Callable[[str], None]
CHECKPOINT = "checkpoint"  # ending of the file in which a step that trains keeps its state


def apply_passes(config: RunConfig, runtime: Runtime, show: Show) -> Graph:
    """Return the network after all passes of the last branch, unmeasured. Raises `MlperfOptError`."""
    graph, data = load_without_data(config)
    for step in last_branch(config.steps):
        show(f"{step.name}: applying {step.pass_name}")
        step.apply.check(graph)
        graph = verify(step.apply(graph, PassContext(data, config.seed, runtime, show)).graph)
    return graph


def branch_note(steps: tuple[Step, ...]) -> str | None:
    """Return a line that says which steps `apply_passes` leaves out; None where it takes all."""
    taken = [step.name for step in last_branch(steps)]
    left = [step.name for step in steps if step.name not in taken]
    return f"using the last branch ({', '.join(taken)}), without {', '.join(left)}" if left else None


@dataclass(frozen=True)
class _Done:
    """A finished step: what was saved, the model read back from it, its row, and what measuring found to say."""

    graph: Graph
    saved: SavedModel
    subject: Subject
    record: Record
    findings: tuple[str, ...]


class Run:
    """One run in one folder. ``records`` grows by a row a step, and so does metrics.csv."""

    def __init__(self, config: RunConfig, folder: Path, show: Show) -> None:
        self.records: list[Record] = []
        self.tables: dict[str, Mapping[str, list[dict[str, Any]]]] = {}  # by step
        self._config = config
        self._folder = folder
        self._show = show
        self._done: dict[str, _Done] = {}
        self._data: Dataset

    def execute(self) -> None:
        """Run all steps.

        Raises:
            MlperfOptError: a step failed; its row, INVALID with the reason, and the rows before it are on disk.
            Exception: the same for a defect.
        """
        started = time.perf_counter()
        with fix_threads(self._config.runtime.threads):
            graph, self._data = load(self._config)
            self._write_description(graph)
            seconds = time.perf_counter() - started
            for step in (None, *self._config.steps):
                try:
                    if step is None:
                        self._finish(BASELINE, PassResult(graph), None, seconds)
                    else:
                        self._step(step)
                except Exception as error:
                    self._fail(step, error)
                    raise
        # Only now: until then the same command in the same folder goes on from them.
        # Files under a temporary name are what a killed process was writing.
        for path in (*self._folder.glob(f"*.{CHECKPOINT}"), *self._folder.glob(".*.tmp")):
            path.unlink()

    def _step(self, step: Step) -> None:
        self._show(f"{step.name}: applying {step.pass_name}")
        source = self._done[step.source]
        context = PassContext(
            data=self._data,
            seed=self._config.seed,
            runtime=self._config.runtime.runtime,
            progress=lambda line: self._show(f"{step.name}: {line}"),
            baseline=self._done[BASELINE].graph,
            checkpoint=self._path(step.name, CHECKPOINT),
        )
        started = time.perf_counter()
        step.apply.check(source.graph)
        result = step.apply(source.graph, context)
        verify(result.graph)
        seconds = time.perf_counter() - started
        self.tables[step.name] = result.tables
        for table, rows in result.tables.items():
            write_table(self._path(f"{step.name}-{table}", "csv"), rows)
        for ending, content in result.files.items():
            write_bytes(self._path(step.name, ending), content)
        self._finish(step.name, result, step, seconds)

    def _finish(self, name: str, result: PassResult, step: Step | None, seconds: float) -> None:
        """Save, read back, measure and record."""
        blank = replace(self._blank(step), pass_seconds=seconds)
        saved = save_graph(result.graph, self._path(name, "safetensors"))
        source = self._done[step.source] if step else None
        if source is not None and saved.sha256 == source.saved.sha256:
            # The same file: it was measured already.
            same = ("step", "name", "pass_", "settings", "pass_seconds", "division")
            record = replace(source.record, **{field: getattr(blank, field) for field in same})
            record = replace(record, reasons="; ".join([*source.findings, *result.notes]))
            self._done[name] = replace(source, saved=saved, record=record)
            self._add(record)
            return
        self._show(f"{name}: measuring")
        graph = load_graph(saved.path)
        settings = self._config.measure
        subject = Subject(graph, self._config.runtime.runtime, self._data, settings.batch, settings.split)
        baseline = self._done[BASELINE].subject if step else subject
        subject.timed_outputs.clear()
        columns, faults, notes = measure(subject, baseline, self._data, settings, self._config.seed)
        if step is not None and source is not None and step.apply.is_exact(source.graph):
            fact = exactness(source.subject, subject, self._data)
            faults += [f"{step.name} must leave the outputs as they are: {fact}"] if fact else []
        findings = (*faults, *notes)
        record = replace(
            blank,
            **self._sizes(graph, saved),
            **columns,
            status="INVALID" if faults else "VALID",
            reasons="; ".join([*findings, *result.notes]),
        )
        self._done[name] = _Done(graph, saved, subject, record, findings)
        self._add(record)

    def _path(self, name: str, ending: str) -> Path:
        """Return where a file of the step that is being done goes."""
        return self._folder / f"{len(self.records):02d}-{name}.{ending}"

    def _sizes(self, graph: Graph, saved: SavedModel) -> dict[str, Any]:
        weights = graph.parameters().values()
        parameters = sum(weight.values.size for weight in weights)
        nonzero = sum(int(weight.values.size - weight.is_zero.sum()) for weight in weights)
        inputs = self._data.calibration.inputs
        length = inputs.shape[1] if inputs.ndim == 2 else 1
        baseline = self._done[BASELINE].saved if BASELINE in self._done else saved
        return {
            "parameters": parameters,
            "nonzero": nonzero,
            "sparsity": 1 - nonzero / parameters,
            "macs": graph.macs({"N": 1, "T": length, "L": length}),
            "file_bytes": saved.file_bytes,
            "weights_bytes": saved.weights_bytes,
            "file_ratio": saved.file_bytes / baseline.file_bytes,
            "weights_ratio": saved.weights_bytes / baseline.weights_bytes,
            "model_sha256": saved.sha256,
        }

    def _blank(self, step: Step | None) -> Record:
        """The row of a step before anything is measured."""
        config = self._config
        path = lineage(config.steps, step.name) if step else []
        changed = any(s.apply.effect in ("discards_weights", "retrains") for s in path)
        return Record(
            run=self._folder.name,
            model=config.model.name,
            data=config.data.name,
            split=config.measure.split,
            seed=config.seed,
            runtime=config.runtime.name,
            threads=config.runtime.threads,
            batch=config.measure.batch,
            step=len(self.records),
            name=step.name if step else BASELINE,
            pass_=step.pass_name if step else BASELINE,
            settings=json.dumps(asdict(step.apply) if step else {}, separators=(",", ":")),
            division="open-style" if changed else "closed-style",
        )

    def _add(self, record: Record) -> None:
        self.records.append(record)
        write_metrics(self._folder / "metrics.csv", self.records)
        where = f"{record.model} on {record.data} ({record.split} split)"
        title = f"{where}, seed {record.seed}, {record.runtime} runtime, {record.threads} thread(s)"
        write_text(self._folder / "summary.md", markdown(run_grid(self.records), title, run_notes(self.records)))

    def _fail(self, step: Step | None, error: Exception) -> None:
        """Leave the row of a step that failed; on a full disk only in memory, for the error itself is the news."""
        reason = str(error) if isinstance(error, MlperfOptError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(MlperfOptError):
            self._add(replace(self._blank(step), reasons=reason))

    def _write_description(self, graph: Graph) -> None:
        description: Mapping[str, Any] = {
            "config": self._config.plain,
            "seed": self._config.seed,
            "data_sha256": self._data.sha256,
            "weights_sha256": graph_hash(graph),
            "system": describe_system(),
        }
        write_json(self._folder / "run.json", description)
