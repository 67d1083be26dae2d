"""``python -m dgm_fast.perf``: the commands of ``dgm-fast perf``."""

from __future__ import annotations

import sys


def main() -> int:
    try:
        from dgm_fast.perf.command import perf
    except ImportError as error:
        if error.name != "click":
            raise
        print(
            "the command line needs the package click: pip install 'dgm_fast[train]'",
            file=sys.stderr,
        )
        return 2
    perf(prog_name="python -m dgm_fast.perf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
