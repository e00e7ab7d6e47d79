"""Where the one-file application starts: the command line, or the page when it is double-clicked."""

import os
import sys
from collections.abc import MutableMapping

from unrain.cli import main

# How `unrain.web.runner` starts its worker; here the interpreter is the application itself.
WORKER = ["-P", "-m", "unrain.web.worker"]


def own_libraries(environment: MutableMapping[str, str]) -> None:
    """Let programs that this one starts, such as the browser, load their own libraries."""
    before = environment.pop("LD_LIBRARY_PATH_ORIG", None)
    environment.pop("LD_LIBRARY_PATH", None)
    if before is not None:
        environment["LD_LIBRARY_PATH"] = before


def start(arguments: list[str]) -> int:
    """Run with the arguments of the process; without any, open the page on a free port."""
    if arguments == WORKER:
        from unrain.web import worker

        worker.main()
        return 0
    return main(arguments or ["serve", "--open", "--port", "0"])


if __name__ == "__main__":
    own_libraries(os.environ)
    sys.exit(start(sys.argv[1:]))
