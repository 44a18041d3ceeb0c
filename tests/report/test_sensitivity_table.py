"""Accuracy of each matrix at each setting, and what may be copied from it."""

from mlperf_opt.report import sensitivity_grid, sensitivity_note, sensitivity_table


def _row(node, setting, value, calibration):
    row = {"weight": f"{node}.weight", "node": node, "setting": setting, "value": value}
    return row | {"calibration": calibration, "change": calibration - 0.95}


ROWS = [
    _row("conv1", "sparsity", 0.5, 0.945),
    _row("conv1", "sparsity", 0.9, 0.7),
    _row("conv1", "bits", 3, 0.8),
    _row("conv1", "bits", 4, 0.948),
    _row("conv1", "bits", 8, 0.95),
    _row("fc1", "sparsity", 0.5, 0.95),
    _row("fc1", "sparsity", 0.9, 0.942),
]


def test_a_row_for_each_matrix_and_nothing_where_nothing_was_measured():
    grid = sensitivity_grid(ROWS)
    assert [tuple(row) for row in grid.rows] == [
        ("conv1", "0.945", "0.700", "0.800", "0.948", "0.950"),
        ("fc1", "0.950", "0.942", "-", "-", "-"),
    ]
    assert sensitivity_table(ROWS).row_count == 2


def test_the_note_names_what_each_matrix_bears():
    note = sensitivity_note(ROWS, 0.01)
    assert note == ("at most 0.01 lost by each alone, untrained: zeros conv1 50%, fc1 90%; passes.cluster.layers={conv1:4}")
    assert "cluster" not in sensitivity_note(ROWS[-2:], 0.001)
