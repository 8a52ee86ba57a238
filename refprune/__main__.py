"""`python -m refprune` is the command `refprune`, also where only PYTHONPATH names the package."""

import sys

from .cli.main import main

sys.exit(main())
