"""`python -m longtake`, the same as the command `longtake`."""

import sys

from longtake.cli import main

if __name__ == "__main__":
    sys.exit(main())
