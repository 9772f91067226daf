"""What can go wrong in the lab itself, as opposed to what is tested on it."""

from pathlib import Path


class LabError(Exception):
    """The lab cannot be made, or a host does not do what it was told; the text says why."""


class CommandFailed(LabError):
    """A command in the lab failed or took too long; what it printed is in the text."""

    def __init__(self, argv: tuple[str, ...], outcome: str, output: str) -> None:
        self.argv = argv
        self.outcome = outcome
        self.output = output
        super().__init__(f"{' '.join(argv)}: {outcome}\n{output}".rstrip())


def tail(path: Path, lines: int = 15) -> str:
    """The end of a log, headed by its name; or that there is none."""
    try:
        kept = path.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        return f"({path} does not exist)"
    return "\n".join([f"--- the end of {path}", *kept])
