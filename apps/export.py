"""``ssmsam export``, from a clone: ``python apps/export.py --help``."""

import sys

from ssmsam.cli import launcher

main = launcher("export")

if __name__ == "__main__":
    sys.exit(main())
