"""``ssmsam samples``, from a clone: ``python apps/samples.py --help``."""

import sys

from ssmsam.cli import launcher

main = launcher("samples")

if __name__ == "__main__":
    sys.exit(main())
