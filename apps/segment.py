"""``ssmsam segment``, from a clone: ``python apps/segment.py --help``."""

import sys

from ssmsam.cli import launcher

main = launcher("segment")

if __name__ == "__main__":
    sys.exit(main())
