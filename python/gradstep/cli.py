"""The entry point of the command `gradstep`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without its packages, say which extra installs them."""
    try:
        from gradstep.commands.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "gradstep":
            raise
        print(
            f'gradstep: the command line needs the package {error.name}: pip install "gradstep[cli]"',
            file=sys.stderr,
        )
        sys.exit(1)
    app()
