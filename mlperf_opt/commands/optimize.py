"""The main job: compose, check every job, run, show."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from mlperf_opt.composition import (
    MAIN,
    VERSION_BASE,
    compose,
    expand,
    first_line,
    fixed,
    lint_folder,
    register_pipelines,
    to_yaml,
    was_interrupted,
)
from mlperf_opt.config import RunConfig, build_config, load
from mlperf_opt.errors import ConfigError, MlperfOptError
from mlperf_opt.overrides import SWEEP_DIR, CommandLine
from mlperf_opt.records import Record
from mlperf_opt.report import (
    export_note,
    milestone_table,
    profile_table,
    run_notes,
    run_table,
    sensitivity_note,
    sensitivity_table,
    sweep_table,
    write_text,
)
from mlperf_opt.resources import resource_dir
from mlperf_opt.runner import CHECKPOINT, Run
from mlperf_opt.sweep import Job, write_summary

HELP = "apply passes to a model and measure every step (the default)"
_ERROR_FILE = "error.txt"


def run(line: CommandLine, console: Console) -> int:
    """Run one job, or with ``-m`` one for every combination of values.

    Returns:
        0; 1 when a job of a sweep failed, or a row is INVALID: what it says is not to be relied on.

    Raises:
        MlperfOptError: before anything is written, for whatever can be known before; later for a single run that failed.
    """
    if line.config_dir is not None:
        lint_folder(line.config_dir)
    register_pipelines(line)
    if line.show:
        return _show_configuration(line, console)
    _check(line)
    if line.multirun:
        return _sweep(line, console)
    return _single(line, console)


def _show_configuration(line: CommandLine, console: Console) -> int:
    jobs = [compose(MAIN, overrides, line.config_dir) for overrides in expand(line)]
    for plain in jobs:
        build_config(plain)
    console.print(to_yaml(jobs), soft_wrap=True, end="")
    return 0


def _check(line: CommandLine) -> None:
    """Refuse what can be refused before a folder is made: compose, type and load every job."""
    hydra_words = [word for word in line.overrides if word.lstrip("+~").startswith("hydra")] if line.multirun else []
    # Another sweeper draws its values while it runs: what is known is checked.
    known = expand(line) if line.value("hydra/sweeper") in (None, "basic") else [fixed(line)]
    for overrides in known:
        try:
            config = build_config(compose(MAIN, [*overrides, *hydra_words], line.config_dir))
            assert config.runtime.runtime  # raises for a name that doesn't exist
            load(config)
        except MlperfOptError as error:
            prefix = f"job {' '.join(overrides)}: " if line.multirun and overrides else ""
            raise type(error)(f"{prefix}{error}") from None


def _single(line: CommandLine, console: Console) -> int:
    failures: list[MlperfOptError] = []
    jobs: list[Run] = []

    def task(config: RunConfig, folder: Path, _number: int) -> None:
        console.print(_headline(config))
        with console.status("starting") as status:
            job = Run(config, folder, status.update)
            jobs.append(job)
            try:
                job.execute()
            except MlperfOptError as error:
                failures.append(error)
        _show(job, config, console)
        console.print(f"written to {_relative(folder)}")

    _run_hydra(line, [], task)
    if failures:
        raise failures[0]
    return 0 if all(_is_valid(job.records) for job in jobs) else 1


def _sweep(line: CommandLine, console: Console) -> int:
    jobs: list[Job] = []
    total = len(expand(line))
    given = line.value(SWEEP_DIR)
    folder = Path(given.strip("'\"") if given else _sweep_folder())

    def task(config: RunConfig, job_folder: Path, number: int) -> None:
        overrides = tuple(_task_overrides())
        job = Run(config, job_folder, lambda _text: None)
        failure = None
        try:
            job.execute()
        except MlperfOptError as error:
            failure = str(error)
        except Exception as error:  # the other jobs go on; the trace is kept
            failure = f"{type(error).__name__}: {error}"
            write_text(job_folder / _ERROR_FILE, traceback.format_exc())
        jobs.append(Job(number, overrides, tuple(job.records), failure))
        write_summary(folder, jobs)
        outcome = f"failed: {failure}" if failure else "done"
        console.print(f"[{number + 1}/{total}] {' '.join(overrides)}: {outcome}", soft_wrap=True)
        _show_promises(job, config, console)

    try:
        _run_hydra(line, [] if given else [f"{SWEEP_DIR}={folder}"], task)
    finally:
        with contextlib.suppress(OSError):
            (folder / "multirun.yaml").unlink()  # Hydra's notes, with the paths of this machine
    console.print(sweep_table(write_summary(folder, jobs)))
    console.print(f"written to {_relative(folder)}")
    return 0 if all(job.failure is None and _is_valid(job.records) for job in jobs) else 1


def _is_valid(records: Sequence[Record]) -> bool:
    return all(record.status == "VALID" for record in records)


def _run_hydra(line: CommandLine, extra: list[str], task: Callable[[RunConfig, Path, int], None]) -> None:
    """Hand over to Hydra, which makes the folders and calls ``task`` for each job."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    escaped: list[Exception] = []
    folders: list[Path] = []

    def entry(composed: DictConfig) -> None:
        plain: Any = OmegaConf.to_container(composed, resolve=True)
        runtime = HydraConfig.get().runtime
        number = HydraConfig.get().job.num if line.multirun else 0
        folders.append(Path(runtime.output_dir))
        if not escaped:
            try:
                task(build_config(plain), Path(runtime.output_dir), int(number))
            except Exception as error:  # Hydra would print a line of its own; a full disk ends a sweep
                escaped.append(error)

    search = [f"hydra.searchpath=[file://{line.config_dir}]"] if line.config_dir else []
    overrides = [*line.overrides, *search, *extra, f"hydra.mode={'MULTIRUN' if line.multirun else 'RUN'}"]
    try:
        # What hydra.main does with words of its own, which are checked here already, and once more to find the mode.
        with hydra.initialize_config_dir(str(resource_dir("conf")), job_name="optimize", version_base=VERSION_BASE):
            app = GlobalHydra.instance().hydra
            assert app is not None
            (app.multirun if line.multirun else app.run)(MAIN, entry, overrides)
    except (HydraException, OmegaConfBaseException, KeyboardInterrupt) as error:
        if was_interrupted(error):
            raise KeyboardInterrupt(f"finished steps are on disk{_how_to_go_on(folders, line)}") from None
        raise ConfigError(first_line(error)) from None
    if escaped:
        raise escaped[0]


def _how_to_go_on(folders: list[Path], line: CommandLine) -> str:
    """Return what a user can do about a training that was interrupted, ``""`` where none was."""
    if line.multirun or not folders or not any(folders[-1].glob(f"*.{CHECKPOINT}")):
        return ""
    return f"; the same command with hydra.run.dir={_relative(folders[-1])} goes on from the checkpoint in it"


def _task_overrides() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def _sweep_folder() -> str:
    now = datetime.now()
    return f"outputs/{now:%Y-%m-%d}/{now:%H-%M-%S-%f}"


def _headline(config: RunConfig) -> str:
    steps = ", ".join(step.name for step in config.steps) or "no passes"
    runtime = f"{config.runtime.name} runtime, {config.runtime.threads} thread(s)"
    return f"{config.model.name} on {config.data.name}: {steps} ({runtime})"


def _show(job: Run, config: RunConfig, console: Console) -> None:
    for step, tables in job.tables.items():
        if "nodes" in tables:
            console.print(f"{step}:")
            console.print(profile_table(tables["nodes"]))
            console.print()
        if "sensitivity" in tables:
            console.print(sensitivity_table(tables["sensitivity"]))
            console.print(sensitivity_note(tables["sensitivity"], config.measure.max_drop), soft_wrap=True)
            console.print()
    console.print(run_table(job.records))
    for note in run_notes(job.records):
        console.print(note, style="dim")
    for step, tables in job.tables.items():
        for row in tables.get("check", []):
            console.print(f"{step}: {export_note(row)}", soft_wrap=True)
    _show_promises(job, config, console)


def _show_promises(job: Run, config: RunConfig, console: Console) -> None:
    """What a pipeline promises beside what was measured, once all its steps are done."""
    if config.promises and len(job.records) == len(config.steps) + 1:
        console.print()
        console.print(milestone_table(job.records, config.promises))
        console.print()


def _relative(folder: Path) -> str:
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)
