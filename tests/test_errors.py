"""The errors that users see, and the "did you mean" in them."""

import inspect

import pytest

from mlperf_opt import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


def test_all_errors_of_users_have_one_base():
    assert len(KINDS) >= 7
    assert all(issubclass(kind, errors.MlperfOptError) for kind in KINDS)
    assert not any(issubclass(kind, ValueError | TypeError | OSError) for kind in KINDS), "they would be caught by accident"


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_its_message(kind):
    assert str(kind("one line")) == "one line"


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("prun", ["quant", "prune"], "; did you mean 'prune'? (one of: prune, quant)"),
        ("xyz", ["quant", "prune"], " (one of: prune, quant)"),
        ("", ["b", "a"], " (one of: a, b)"),
        ("anything", [], ""),
        ("quant", {"quant": 1}, "; did you mean 'quant'? (one of: quant)"),
    ],
)
def test_did_you_mean(name, options, expected):
    assert errors.did_you_mean(name, options) == expected


def test_of_very_many_options_the_nearest_are_listed():
    options = [f"layer{layer}.{part}" for layer in range(20) for part in ("up", "down")]
    said = errors.did_you_mean("layer7.upp", options)
    assert said.startswith("; did you mean 'layer7.up'? (one of 40, such as layer") and "layer7.up" in said[30:]
    assert len(said) < 120
    assert errors.did_you_mean("", options).startswith(" (one of 40, such as layer")
    assert "such as" not in errors.did_you_mean("", options[:24]), "settings of one pass are all listed"


def test_did_you_mean_takes_any_iterable_once():
    assert errors.did_you_mean("reluu", iter(["gelu", "relu"])) == "; did you mean 'relu'? (one of: gelu, relu)"
