"""The command ``vagoth``, also as ``python -m vagoth``: nothing but its first moment."""

from __future__ import annotations

import os
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. An interrupt while it is still being imported ends it quietly."""
    signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(130))
    from vagoth.shell.main import main as run

    run()


if __name__ == "__main__":
    main()
