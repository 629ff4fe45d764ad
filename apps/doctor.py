"""``ssmsam doctor``, from a clone: ``python apps/doctor.py --help``."""

import sys

from ssmsam.cli import launcher

main = launcher("doctor")

if __name__ == "__main__":
    sys.exit(main())
