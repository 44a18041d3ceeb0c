"""``python -m mlperf_opt`` and the console script ``mlperf-opt``."""

from __future__ import annotations

import sys

from mlperf_opt import cli


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
