"""Untyped mappings become frozen dataclasses, or one line that names the key and what was expected."""

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_opt.errors import ConfigError
from mlperf_opt.settings import build_settings, require


@dataclass(frozen=True)
class Prune:
    """Settings with every kind of field."""

    sparsity: float
    method: Literal["magnitude", "random"] = "magnitude"
    epochs: int = 3
    exact: bool = False
    note: str = ""
    limit: float | None = None
    layers: tuple[str, ...] = ()
    block: tuple[int, int] = (1, 1)
    table: dict = field(default_factory=dict)
    level: Literal[1, 2] = 1

    def __post_init__(self):
        """Check the ranges."""
        require(0 <= self.sparsity < 1, "sparsity", self.sparsity, "0 <= sparsity < 1")


def _build(**values):
    return build_settings(Prune, {"sparsity": 0.5, **values}, "passes.prune")


def test_defaults_and_given_values():
    assert _build() == Prune(0.5)
    assert _build(epochs=0, exact=True, note="x").epochs == 0


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("sparsity", 0, 0.0),
        ("epochs", 7, 7),
        ("exact", True, True),
        ("note", "1", "1"),
        ("method", "random", "random"),
        ("limit", None, None),
        ("limit", 2, 2.0),
        ("layers", ["a", "b"], ("a", "b")),
        ("layers", [], ()),
        ("layers", ("a",), ("a",)),
        ("block", [2, 4], (2, 4)),
        ("table", {"a": 1}, {"a": 1}),
        ("level", 2, 2),
    ],
)
def test_a_value_of_the_right_type_is_converted(key, value, expected):
    found = getattr(_build(**{key: value}), key)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "key, value, text",
    [
        ("sparsity", True, "expected a number"),
        ("sparsity", "0.5", "expected a number"),
        ("sparsity", None, "expected a number"),
        ("sparsity", [0.5], "expected a number"),
        ("epochs", True, "expected a whole number"),
        ("epochs", 1.0, "expected a whole number"),
        ("epochs", "3", "expected a whole number"),
        ("exact", 1, "expected true or false"),
        ("exact", "true", "expected true or false"),
        ("note", 1, "expected a text"),
        ("note", None, "expected a text"),
        ("method", "magnitud", "no such choice; did you mean 'magnitude'?"),
        ("method", None, "no such choice"),
        ("limit", "x", "expected a number"),
        ("limit", False, "expected a number"),
        ("layers", "abc", r"expected a list such as \[1,2\]"),
        ("layers", 3, r"expected a list such as \[1,2\]"),
        ("layers", ["a", 1], "expected a text"),
        ("block", [1], "expected 2 values, got 1"),
        ("block", [1, 2, 3], "expected 2 values, got 3"),
        ("block", [1, 2.5], "expected a whole number"),
        ("block", [1, True], "expected a whole number"),
        ("table", [1], "expected a mapping"),
        ("level", 3, "no such choice"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_by_its_key(key, value, text):
    with pytest.raises(ConfigError, match=rf"^passes\.prune\.{key}=.*{text}"):
        _build(**{key: value})


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"^passes\.prune\.sparcity: no such setting; did you mean 'sparsity'\?.*one of: block"
    ):
        _build(sparcity=0.1)


def test_a_key_that_is_no_text_is_unknown():
    with pytest.raises(ConfigError, match=r"^passes\.prune\.3: no such setting"):
        build_settings(Prune, {3: 1, "sparsity": 0.5}, "passes.prune")


def test_a_missing_key_without_default_is_named():
    with pytest.raises(ConfigError, match=r"^passes\.prune\.sparsity: missing, and it has no default$"):
        build_settings(Prune, {}, "passes.prune")


@pytest.mark.parametrize("value", [1, 1.5, -0.1, float("nan"), float("inf")])
def test_a_range_error_is_prefixed_by_the_key(value):
    with pytest.raises(ConfigError, match=r"^passes\.prune\.sparsity=.*: expected 0 <= sparsity < 1$"):
        _build(sparsity=value)


def test_require_passes_what_is_right():
    assert require(True, "x", 1, "anything") is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4), lambda inner: st.lists(inner, max_size=3)
)


@given(st.dictionaries(st.sampled_from([*Prune.__dataclass_fields__, "other", ""]), values, max_size=4))
def test_any_mapping_gives_settings_or_a_config_error(mapping):
    try:
        built = build_settings(Prune, mapping, "passes.prune")
    except ConfigError as error:
        assert str(error).startswith("passes.prune.")
    else:
        assert 0 <= built.sparsity < 1
        assert type(built.epochs) is int and type(built.exact) is bool and type(built.sparsity) is float
