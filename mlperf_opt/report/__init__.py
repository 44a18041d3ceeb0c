"""Records -> files, tables and comparisons."""

from mlperf_opt.report.compare import Delta, changed_settings, compare, compare_grid, fail_on, unmatched
from mlperf_opt.report.csv_files import read_metrics, write_metrics, write_table
from mlperf_opt.report.files import save_path, write_bytes, write_json, write_text
from mlperf_opt.report.frontier import panels
from mlperf_opt.report.grid import Grid, markdown, to_rich
from mlperf_opt.report.milestone import Promise, milestone_grid, milestone_table
from mlperf_opt.report.plot import Format, draw
from mlperf_opt.report.results import Results, read_results
from mlperf_opt.report.side_by_side import side_by_side
from mlperf_opt.report.table import (
    export_grid,
    export_note,
    export_table,
    profile_grid,
    profile_table,
    run_grid,
    run_notes,
    run_table,
    sensitivity_grid,
    sensitivity_note,
    sensitivity_table,
    sweep_grid,
    sweep_table,
)

__all__ = [
    "Delta",
    "Format",
    "Grid",
    "Promise",
    "Results",
    "changed_settings",
    "compare",
    "compare_grid",
    "draw",
    "export_grid",
    "export_note",
    "export_table",
    "fail_on",
    "markdown",
    "milestone_grid",
    "milestone_table",
    "panels",
    "profile_grid",
    "profile_table",
    "read_metrics",
    "read_results",
    "run_grid",
    "run_notes",
    "run_table",
    "save_path",
    "sensitivity_grid",
    "sensitivity_note",
    "sensitivity_table",
    "side_by_side",
    "sweep_grid",
    "sweep_table",
    "to_rich",
    "unmatched",
    "write_bytes",
    "write_json",
    "write_metrics",
    "write_table",
    "write_text",
]
