"""What every test runs under: numpy's floating point errors raise, random numbers are seeded."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _numpy_errors_raise():
    """An overflow, a division by zero or an invalid value is an error; underflow to zero is legal."""
    with np.errstate(all="raise", under="ignore"):
        yield


@pytest.fixture
def rng():
    """Return a generator with a fixed seed."""
    return np.random.default_rng(1234)
