"""``ssmsam serve``, from a clone: ``python apps/serve.py --help``."""

import sys

from ssmsam.cli import launcher

main = launcher("serve")

if __name__ == "__main__":
    sys.exit(main())
