"""The shipped models, read once."""

import pytest
from pass_graphs import shipped


@pytest.fixture(scope="session")
def mlp():
    """Return (graph, digits)."""
    return shipped("mlp", "digits")


@pytest.fixture(scope="session")
def cnn():
    """Return (graph, digits)."""
    return shipped("cnn", "digits")


@pytest.fixture(scope="session")
def transformer():
    """Return (graph, reverse), with 200 samples for calibration."""
    return shipped("transformer", "reverse")
