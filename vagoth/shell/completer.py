"""Completion for prompt-toolkit: hands a line to the pure engine, and what it says back."""

from __future__ import annotations

from collections.abc import Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from vagoth.shell.completion import Suggestion, World, complete
from vagoth.shell.line import quoted


class LineCompleter(Completer):
    """Completes lines of the shell. It does no I/O: all it reads is in memory.

    :param world: what there is to suggest, live
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        text = document.text_before_cursor
        for suggestion in complete(text, self._world):
            yield _completion(suggestion, len(text))


def _completion(suggestion: Suggestion, cursor: int) -> Completion:
    return Completion(
        quoted(suggestion.text, partial=suggestion.goes_on),
        start_position=suggestion.start - cursor,
        display=suggestion.text,
        display_meta=suggestion.about,
        style=f"class:completion.{suggestion.kind}",
    )
