"""`swinexplore` and `python -m explorer`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; what nobody foresaw becomes one line and exit code 1, a traceback only with `--debug`."""
    from explorer.cli import app

    try:
        app(prog_name="swinexplore")
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        sys.stderr.write(
            f"internal error: {type(error).__name__}: {error}\nsee the traceback: swinexplore --debug ...\n"
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
