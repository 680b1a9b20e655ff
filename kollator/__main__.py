"""``python -m kollator`` is ``kollator``."""

import sys

from kollator.cli.main import main

sys.exit(main())
