"""The command `tickwheel`: starts it, or says what must be installed first."""

from __future__ import annotations

import sys

EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        from .cli_root import build

        root = build()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        sys.exit(
            f"tickwheel: {error.name} is not installed, which the command line needs: "
            "pip install 'tickwheel[client]', or 'tickwheel[server,embedded]' for a scheduler too"
        )
    root()


if __name__ == "__main__":
    main()
