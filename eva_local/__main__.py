"""Run the command line by `python -m eva_local`."""

import sys

from eva_local.cli import main

sys.exit(main())
