"""``ssmsam train``, from a clone: ``python apps/pretrain.py --help``."""

import sys

from ssmsam.cli import launcher

main = launcher("train")

if __name__ == "__main__":
    sys.exit(main())
