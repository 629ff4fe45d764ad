"""``ssmsam score``, from a clone: ``python apps/score.py --help``."""

import sys

from ssmsam.cli import launcher

main = launcher("score")

if __name__ == "__main__":
    sys.exit(main())
