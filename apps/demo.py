"""``ssmsam demo``, from a clone: ``python apps/demo.py --help``."""

import sys

from ssmsam.cli import launcher

main = launcher("demo")

if __name__ == "__main__":
    sys.exit(main())
