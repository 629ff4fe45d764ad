"""``ssmsam embed``, from a clone: ``python apps/embed.py --help``."""

import sys

from ssmsam.cli import launcher

main = launcher("embed")

if __name__ == "__main__":
    sys.exit(main())
