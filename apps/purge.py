"""``ssmsam purge``, from a clone: ``python apps/purge.py --help``."""

import sys

from ssmsam.cli import launcher

main = launcher("purge")

if __name__ == "__main__":
    sys.exit(main())
