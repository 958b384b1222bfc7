"""`python -m steerfn.cli`."""

import sys

from steerfn.cli._main import main

sys.exit(main())
