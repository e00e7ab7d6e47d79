"""How `--help` looks."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions


class FilledHelp:
    """The usual look, with texts filled to the terminal's width whatever the lines of their docstrings.

    What draws it is imported when help is shown, which few runs do.
    """

    def __call__(self, console: "Console", options: "ConsoleOptions", panel: "HelpPanel") -> None:
        """Draw a panel."""
        from cyclopts.help import DefaultFormatter, InlineText

        entries = []
        for entry in panel.entries:
            text = entry.description
            if isinstance(text, InlineText):
                plain = " ".join(str(text.primary_renderable).split())
                text = InlineText.from_format(plain, format="plaintext")
            entries.append(entry.copy(description=text))
        DefaultFormatter()(console, options, panel.copy(entries=entries))

    def render_usage(self, console: "Console", options: "ConsoleOptions", usage: object) -> None:
        """Draw the line that starts with Usage."""
        from cyclopts.help import DefaultFormatter

        DefaultFormatter().render_usage(console, options, usage)
