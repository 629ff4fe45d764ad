"""``ssmsam adapt``, from a clone: ``python apps/adapt.py --help``."""

import sys

from ssmsam.cli import launcher

main = launcher("adapt")

if __name__ == "__main__":
    sys.exit(main())
