"""``ssmsam benchmark``, from a clone: ``python apps/benchmark.py --help``."""

import sys

from ssmsam.cli import launcher

main = launcher("benchmark")

if __name__ == "__main__":
    sys.exit(main())
