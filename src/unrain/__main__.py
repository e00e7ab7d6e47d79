"""`python -m unrain`."""

import sys

from unrain.cli import main

sys.exit(main())
