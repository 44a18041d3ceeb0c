"""What every test runs under: one thread, numpy's floating point errors raise, random numbers are seeded; where MNIST is."""

import gc
import os
from pathlib import Path

# Before numpy is imported, as the command line does it: two workers with two threads each wait for each other on two cores.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import hypothesis
import numpy as np
import pytest

# A change is judged by the same examples each time; whoever runs the tests by hand draws new ones.
hypothesis.settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


@pytest.fixture(autouse=True, scope="module")
def _what_lasts_is_not_visited_again():
    """Thousands of tests, and what modules keep, live to the end: the collector, which runs before each timing, need not
    visit them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _numpy_errors_raise():
    """An overflow, a division by zero or an invalid value is an error; underflow to zero is legal."""
    with np.errstate(all="raise", under="ignore"):
        yield


@pytest.fixture
def rng():
    """Return a generator with a fixed seed."""
    return np.random.default_rng(1234)


@pytest.fixture(scope="session")
def mnist_root():
    """Return the folder that holds mnist/; without one the test is skipped, and says so."""
    root = os.environ.get("MLPERF_OPT_DATA", "")
    if not root or not (Path(root) / "mnist").is_dir():
        pytest.skip("needs MNIST: set MLPERF_OPT_DATA to a folder that holds mnist/ with its four IDX files")
    return root


@pytest.fixture(scope="session")
def shakespeare():
    """Return the file tinyshakespeare.txt; without it the test is skipped, and says so."""
    path = Path(os.environ.get("MLPERF_OPT_DATA", "")) / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip("needs a text: set MLPERF_OPT_DATA to a folder that holds tinyshakespeare.txt")
    return path
