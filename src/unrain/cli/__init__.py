"""The command line: one module for each command or group, loaded when it is called.

The lab's commands are known by name only, so that `--help` answers at once and without PyTorch.
"""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated

from cyclopts import App, CycloptsError, Group, Parameter

from unrain.cli import derain
from unrain.cli.help import FilledHelp
from unrain.cli.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PIPE_CLOSED,
    EXIT_USAGE,
    error_line,
    flush,
    print_line,
)
from unrain.errors import UnrainError, UsageError

_USAGE = """Usage: unrain IN... [-o OUT] [OPTIONS]
       unrain COMMAND [OPTIONS]
"""
_HELP = """Take the rain out of pictures and videos.

unrain photo.jpg            writes photo_derained.jpg beside it
unrain clip.mp4             writes clip_derained.mp4
unrain holiday/ -o clear/   derains every picture and video of a folder
unrain serve --open         opens a page in the browser
unrain models               lists the models, for --model

A file with the name of a command is given as ./NAME."""

_COMMANDS = Group("Commands", sort_key=0)
_LAB = Group(r"Commands for research (pip install 'unrain\[lab]')", sort_key=5)
_ABOUT = Group("Help", sort_key=6)

# Of each lazily loaded command: where it is, its help, its group. The first line of the help is that of the
# docstring, whose reading would cost an import.
_LAZY = {
    "models": ("unrain.cli.models:models", "List the models, show one, add or remove your own.", _COMMANDS),
    "devices": (
        "unrain.cli.devices:devices",
        "List the processors that a network can run on here, and what is missing for the others.",
        _COMMANDS,
    ),
    "score": (
        "unrain.cli.score:score",
        "Tell how likely it rains in pictures and videos, how strongly, and from where.",
        _COMMANDS,
    ),
    "watch": (
        "unrain.cli.watch:watch",
        "Derain every picture and video that appears in a folder, until Ctrl-C.\n\n"
        "Files that are there already are derained too, unless their results are. A file is taken once it "
        "has not changed for two seconds. After a kill the next run resumes. Needs the extra watch: "
        "pip install 'unrain[watch]'.",
        _COMMANDS,
    ),
    "live": (
        "unrain.cli.live:live",
        "Derain what a camera sees, as it comes in.\n\n"
        "The newest frame always wins: a camera that is faster than the network loses frames and gains no "
        "delay. A camera that is lost is connected again. Needs the extra video: "
        "pip install 'unrain[video]'.",
        _COMMANDS,
    ),
    "serve": (
        "unrain.web.cli:serve",
        "Serve a page and an HTTP API for pictures and videos.\n\nNeeds the extra web: "
        "pip install 'unrain[web]'. For videos also video: pip install 'unrain[web,video]'.",
        _COMMANDS,
    ),
    "train": ("unrain.lab.cli:train", "Train a network by a recipe.", _LAB),
    "adapt": (
        "unrain.lab.cli:adapt",
        "Fine-tune a model on your own rainy pictures, in minutes.\n\n"
        "Measures the model before and after on drawn rain, on pictures that were held out, and writes an "
        "ONNX model for unrain --model.",
        _LAB,
    ),
    "export": (
        "unrain.lab.cli:export",
        "Turn a checkpoint into an ONNX model, or a model into a package for darktable.",
        _LAB,
    ),
    "bench": (
        "unrain.lab.cli:bench",
        "Measure models on whole test sets.\n\n"
        "PSNR and SSIM are those of the Y channel after rounding to 8 bits, averaged over all pictures of a "
        "set. Scores are kept in runs/bench: a run that was killed resumes, and one with the same files and "
        "code reuses them.",
        _LAB,
    ),
    "reproduce": (
        "unrain.lab.cli:reproduce",
        "Measure the README's figures again.\n\n"
        "Compares each with what is stated, and ends with exit code 1 if one differs or is left out.",
        _LAB,
    ),
    "search": (
        "unrain.lab.cli:search",
        "Find the skip connections of RDMC worth keeping.\n\n"
        "Prints each with its strength, and writes a recipe with the strongest for unrain train.",
        _LAB,
    ),
    "ablate": (
        "unrain.lab.cli:ablate",
        "Measure what each part of a recipe is worth.\n\n"
        "Trains and measures variants of a recipe, and writes results.csv, table.md and plot.svg.",
        _LAB,
    ),
}
_LAZY["--install-completion"] = (
    "unrain.cli.completion:install_completion",
    "Let your shell complete commands, options and files.\n\n"
    "Writes a script where the shell looks for it, and for bash and zsh a line into its startup file.",
    _ABOUT,
)
# Commands as they were spelled once, and as they are now.
_MOVED = {
    ("bench", "--speed"): "unrain bench speed",
    ("bench", "--sheet"): "unrain bench sheet -o FILE",
    ("bench-tasks", ""): "unrain bench tasks",
}


def _version() -> str:
    """Return what a bug report needs."""
    import platform

    from unrain import zoo
    from unrain.devices import PACKAGES, version
    from unrain.version import __version__

    lines = [
        f"unrain {__version__}",
        f"Python {platform.python_version()} ({platform.python_implementation()})",
        f"{platform.platform()}, {os.cpu_count()} CPUs",
        *(f"{name} {version(name) or 'missing'}" for name in ("numpy", "pillow", "onnxruntime", "av")),
        *(f"{name} {version(name)}" for name in PACKAGES if version(name)),
        f"models: {', '.join(model.name for model in zoo.built_in()) or 'none'}",
    ]
    return "\n".join(lines)


def _shown_default(value: object) -> str | None:
    """Return how --help shows a default; None where it goes without saying."""
    if value is True:
        return "yes"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or None
    return None if value is None or value is False else str(value)


app = App(
    name="unrain",
    usage=_USAGE,
    help=_HELP,
    # Markdown would cost a quarter of the time that --help takes.
    help_format="plaintext",
    help_formatter=FilledHelp(),
    help_flags=["--help", "-h"],
    version=_version,
    version_flags=["--version"],
    version_format="plaintext",
    group_commands=_COMMANDS,
    default_parameter=Parameter(negative=(), show_default=_shown_default),
)
app.default(derain.derain)
for _name, (_path, _help, _group) in _LAZY.items():
    app.command(_path, name=_name, help=_help, group=_group)
for _flag in ("--help", "--version"):
    app[_flag].group = _ABOUT


@app.command(name="help", group=_ABOUT)
def show_help(*topic: Annotated[str, Parameter(name="TOPIC")]) -> None:
    """Show this help, that of a command, or what there is to say about a topic.

    Args:
        topic: A command, for example bench speed, or one of: formats, videos, rain-score, large,
            exit-codes.
    """
    from unrain.cli.topics import TOPICS

    _refuse_old_spelling(list(topic))
    if len(topic) == 1 and topic[0] in TOPICS:
        for line in TOPICS[topic[0]].split("\n"):
            print_line(line)
        return
    if topic and topic[0] not in _LAZY:
        raise UsageError(
            f"{topic[0]}: no such command or topic; the topics are {', '.join(TOPICS)}, and unrain --help "
            "lists the commands"
        )
    app.help_print(list(topic))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0 all well (skipped results included), 1 something failed, 2 wrong usage,
        130 interrupted, 141 the reader of standard output went away, 143 terminated.
    """
    return flush(_dispatch(sys.argv[1:] if argv is None else argv))


def _dispatch(argv: Sequence[str]) -> int:
    """Run a command and turn every foreseen error into one line and an exit code."""
    tokens = [derain.STREAM if token == "-" else token for token in derain.spelled_out(argv)]
    try:
        _refuse_old_spelling(tokens)
        _refuse_misspelling(tokens)
        _refuse_absent(tokens)
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        message = " ".join(str(error).replace(derain.STREAM, "-").split())
        command = " ".join(["unrain", *(error.command_chain or ())])
        see = " See" if message.endswith("?") else ", see"
        error_line(f"unrain: error: {message.rstrip('.')}{see} {command} --help")
        return EXIT_USAGE
    except UnrainError as error:
        error_line(f"unrain: error: {error}")
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_PIPE_CLOSED
    return result if isinstance(result, int) else 0


def _refuse_old_spelling(tokens: Sequence[str]) -> None:
    """Name the new spelling of a command that has moved.

    Raises:
        UsageError: The command is spelled as it was once.
    """
    for at, token in enumerate(tokens):
        # Once it took the file: now that would be one of the models.
        file = token.removeprefix("--csv=") if token != "--csv" else "".join(tokens[at + 1 : at + 2])
        if tokens[0] == "bench" and token.startswith("--csv") and file.endswith(".csv"):
            raise UsageError(f"unrain bench: --csv {file} is now --csv > {file}")
    for (command, option), new in _MOVED.items():
        options = [token.partition("=")[0] for token in tokens[1:]]
        if tokens[:1] == [command] and (not option or option in options):
            raise UsageError(f"unrain {command} {option}".rstrip() + f" is now {new}")


def _refuse_misspelling(tokens: Sequence[str]) -> None:
    """Name the command that a first word resembles which is no file.

    Raises:
        UsageError: There is one.
    """
    word = tokens[0] if tokens else ""
    if not word.isalpha() or word in _LAZY or os.path.lexists(word):
        return
    from difflib import get_close_matches

    for meant in get_close_matches(word, [*_LAZY, "help"], n=1, cutoff=0.75):
        if meant != word:
            raise UsageError(f"{word}: no such file, and no command; did you mean unrain {meant}?")


def _refuse_absent(tokens: Sequence[str]) -> None:
    """Say what the one-file application, which has no lab, cannot do.

    Raises:
        UnrainError: The command is one of the lab's, and there is no lab.
    """
    name = next((token for token in tokens if token != "help"), "")
    if _LAZY.get(name, ("",))[0].startswith("unrain.lab.") and find_spec("unrain.lab") is None:
        raise UnrainError(
            f"{name}: not part of this application, install Python and then: pip install 'unrain[lab]'"
        )
