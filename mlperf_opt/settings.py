"""Untyped mappings (YAML, command line) -> frozen dataclasses, with errors that name the key and the nearest right one.

OmegaConf's structured configs refuse frozen dataclasses, so types are checked here, once, for every kind of settings.
Ranges are checked by the dataclass itself in ``__post_init__``, which raises `ConfigError`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from mlperf_opt.errors import ConfigError, did_you_mean

T = TypeVar("T")


def build_settings(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build ``cls`` from ``values``.

    Args:
        cls: a dataclass whose fields are annotated with ``int, float, bool, str, tuple[...], dict[K, V], Literal[...]`` or
            ``X | None``.
        values: the settings; a missing key takes the field's default.
        where: the key under which ``values`` stands (``passes.prune``), for messages; empty for settings of the top level.

    Raises:
        ConfigError: an unknown key, a missing required key, a wrong type, or what ``__post_init__`` refuses.
    """
    hints = typing.get_type_hints(cls)
    prefix = f"{where}." if where else ""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{prefix}{key}: no such setting{did_you_mean(str(key), fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{prefix}{name}: missing, and it has no default")
    converted = {key: _convert(value, hints[key], f"{prefix}{key}") for key, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from None


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """Return ``value``. Raises `ConfigError` unless it is keys and values."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}={value}: expected keys and values")
    return value


def require(ok: bool, name: str, value: object, expected: str) -> None:
    """Raise the range error of a setting unless ``ok``: ``name=value: expected ...``."""
    if not ok:
        raise ConfigError(f"{name}={value}: expected {expected}")


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), where)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):  # True == 1
            return value
        raise ConfigError(f"{where}={value}: no such choice{did_you_mean(str(value), map(str, arguments))}")
    if origin is tuple:
        return _convert_tuple(value, arguments, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if origin is dict and isinstance(value, Mapping):
        key, item = arguments
        return {_convert(k, key, f"{where}.{k}"): _convert(v, item, f"{where}.{k}") for k, v in value.items()}
    if hint is dict and isinstance(value, Mapping):
        return dict(value)
    raise ConfigError(f"{where}={value}: expected {_NAMES.get(origin or hint, str(hint))}")


def _convert_tuple(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise ConfigError(f"{where}={value}: expected a list such as [1,2]")
    items = list(value)
    kinds = [arguments[0]] * len(items) if len(arguments) == 2 and arguments[1] is Ellipsis else list(arguments)
    if len(kinds) != len(items):
        raise ConfigError(f"{where}={value}: expected {len(kinds)} values, got {len(items)}")
    return tuple(_convert(item, kind, where) for item, kind in zip(items, kinds, strict=True))


_NAMES = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", dict: "a mapping"}
