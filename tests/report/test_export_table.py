"""What is shown of an exported file."""

import pytest

from mlperf_opt.report import export_grid, export_note

ACCURACY = {"quality_metric": "accuracy", "quality": 0.9564, "quality_low": 0.94, "quality_high": 0.97}


def test_a_row_for_each_runtime_and_the_reference_is_not_compared():
    compared = {"predictions": 16000, "equal": 15999, "max_abs_diff": 0.09321}
    rows = [{"runtime": "numpy", **ACCURACY}, {"runtime": "onnxruntime", **ACCURACY, **compared}]
    grid = export_grid(rows)
    assert grid.headers == ("runtime", "accuracy", "equal predictions", "max |diff| of logits")
    assert grid.rows == (
        ("numpy", "0.956 ±0.015", "-", "-"),
        ("onnxruntime", "0.956 ±0.015", "15,999 of 16,000", "0.0932"),
    )


def test_completions_show_their_tokens_too():
    row = {"runtime": "onnxruntime", **ACCURACY, "quality_metric": "exact_match", "predictions": 9, "equal": 9}
    grid = export_grid([{**row, "max_abs_diff": 0.0, "tokens": 8000, "equal_tokens": 7999}])
    assert grid.headers[1] == "exact match"
    assert grid.rows[0][2:] == ("9 of 9", "7,999 of 8,000", "0")


@pytest.mark.parametrize(
    "predictions, share, difference, said",
    [
        (200, 0.995, 1e-6, "onnxruntime: 199 of 200 predictions equal (calibration split), outputs differ by 1e-06"),
        (None, None, None, "onnxruntime is not installed"),
    ],
)
def test_a_line_on_the_file_of_a_pass(predictions, share, difference, said):
    row = {"file_bytes": 3350, "opset": 20, "predictions": predictions, "equal_share": share, "max_abs_diff": difference}
    assert export_note(row) == f"ONNX file: 3,350 bytes, opset 20, onnx.checker passed; {said}"
