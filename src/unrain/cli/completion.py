"""`unrain --install-completion`: lets a shell complete commands, options and names of files."""

from typing import Annotated, Literal

from cyclopts import Parameter

from unrain.cli.output import print_line
from unrain.errors import UnrainError, UsageError
from unrain.files import one_line


def install_completion(
    shell: Annotated[Literal["bash", "zsh", "fish", "powershell"] | None, Parameter(name="SHELL")] = None, /
) -> None:
    """Let your shell complete commands, options and files.

    Writes a script where the shell looks for it, and for bash and zsh a line into its startup file.

    Args:
        shell: The shell; the one that runs this by default.
    """
    from cyclopts.completion.detect import ShellDetectionError

    from unrain.cli import app

    try:
        path = app.install_completion(shell=shell)
    except ShellDetectionError as error:
        raise UsageError(
            "the shell cannot be told from here: unrain --install-completion bash (or zsh, fish, powershell)"
        ) from error
    except OSError as error:
        where = error.filename or "the shell's folder"
        raise UnrainError(f"{where}: cannot be written ({one_line(error.strerror or error)})") from error
    print_line(f"{path} written: open a new shell to use it")
