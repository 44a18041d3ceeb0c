"""A record to start from, shared by the tests of reports."""

import pytest

from mlperf_opt.records import Record


@pytest.fixture
def make_record():
    """Return a function that makes a valid record; every field can be given."""

    def make(name="quant", **fields):
        basics = {"run": "r1", "model": "mlp", "data": "digits", "split": "test", "seed": 0, "runtime": "numpy"}
        basics |= {"threads": 1, "batch": 1, "step": 1, "name": name, "pass_": name, "settings": "{}", "status": "VALID"}
        return Record(**{**basics, **fields})

    return make
