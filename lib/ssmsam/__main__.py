"""``python -m ssmsam`` is the command ``ssmsam``."""

import sys

from ssmsam.cli import main

sys.exit(main())
