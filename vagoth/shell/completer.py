"""Completion for prompt-toolkit: hands a line to the pure engine, and what it says back."""

from __future__ import annotations

from collections.abc import Iterable

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    get_common_complete_suffix,
)
from prompt_toolkit.document import Document
from prompt_toolkit.filters import completion_is_selected
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from vagoth.shell.completion import Suggestion, World, complete
from vagoth.shell.line import quoted


class LineCompleter(Completer):
    """Completes lines of the shell. It does no I/O: all it reads is in memory.

    :param world: what there is to suggest, live
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def suggestions(self, document: Document) -> list[Suggestion]:
        """What may follow what stands before the cursor."""
        return complete(document.text_before_cursor, self._world)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        cursor = document.cursor_position
        for suggestion in self.suggestions(document):
            yield _completion(suggestion, cursor)

    def bindings(self) -> KeyBindings:
        """Tab as in other shells: what is certain is typed, the rest is shown to choose from.

        prompt-toolkit's own drops a Tab that comes while it still looks up what was typed before.
        """
        bindings = KeyBindings()

        @bindings.add("tab")
        def tab(event: KeyPressEvent) -> None:
            self.tab(event.current_buffer)

        # What is chosen from the menu is typed, not run: `stop` must not follow from a menu.
        @bindings.add("enter", filter=completion_is_selected)
        def enter(event: KeyPressEvent) -> None:
            event.current_buffer.complete_state = None

        return bindings

    def tab(self, buffer: Buffer) -> None:
        """Go on with what is certain; with nothing certain, choose the next suggestion."""
        document = buffer.document
        if buffer.complete_state and buffer.complete_state.current_completion is not None:
            buffer.complete_next()
            return
        found = self.suggestions(document)
        completions = [_completion(each, document.cursor_position) for each in found]
        if len(found) == 1:
            buffer.apply_completion(completions[0])
            if not found[0].goes_on and not buffer.document.current_char:
                buffer.insert_text(" ")
        elif common := get_common_complete_suffix(document, completions):
            buffer.insert_text(common)
        elif buffer.complete_state:
            buffer.complete_next()
        else:
            buffer.start_completion(select_first=False)


def _completion(suggestion: Suggestion, cursor: int) -> Completion:
    return Completion(
        quoted(suggestion.text, partial=suggestion.goes_on),
        start_position=suggestion.start - cursor,
        display=suggestion.text,
        display_meta=suggestion.about,
        style=f"class:completion.{suggestion.kind}",
    )
