"""Errors that a user can cause, and the "did you mean" that goes with them.

Every class here is a mistake or a limit that the command line prints as one line before it exits with status 2.
Anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST_OPTIONS = 24  # that are all listed
_NEAREST = 4


class MlperfOptError(Exception):
    """Base of all errors that are shown as one line, without a traceback."""


class ConfigError(MlperfOptError):
    """A wrong name, key, type, range or order in the configuration or on the command line."""


class GraphError(MlperfOptError):
    """A graph that breaks a rule: shapes that don't fit, a name used twice, a missing weight."""


class PassError(MlperfOptError):
    """A pass that can't be applied to this graph."""


class DataError(MlperfOptError):
    """A data set that is missing, unreadable or not what it should be."""


class ArtifactError(MlperfOptError):
    """A model file that is missing, damaged or not ours."""


class SessionError(MlperfOptError):
    """A generation session used outside its limits: full cache, empty prompt, negative count."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` plus the options, or only the options where nothing is near.

    Of very many options, the weights of a transformer say, only the nearest are listed: the line is to be read.

    Args:
        name: what the user wrote.
        options: the names that would have been accepted.
    """
    known = sorted(options)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if len(known) > _MOST_OPTIONS:
        nearest = sorted(difflib.get_close_matches(name, known, n=_NEAREST, cutoff=0.0))
        return f"{hint} (one of {len(known)}, such as {', '.join(nearest)})"
    return f"{hint} (one of: {', '.join(known)})" if known else hint
