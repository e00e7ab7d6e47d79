"""Run the campaign from the repository's root: `python -m tests.attack`."""

import sys
from pathlib import Path

# Tests import each other's toys by their bare names; here nobody has set the path for that.
sys.path.insert(0, str(Path(__file__).parents[1]))

from attack.campaign import main

if __name__ == "__main__":
    sys.exit(main())
