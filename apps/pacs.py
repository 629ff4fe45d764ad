"""``ssmsam pacs``, from a clone: ``python apps/pacs.py --help``."""

import sys

from ssmsam.cli import launcher

main = launcher("pacs")

if __name__ == "__main__":
    sys.exit(main())
