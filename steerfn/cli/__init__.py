"""The command line: `steerfn demo | discover | generate | compare | sweep | report | inspect`."""

from steerfn.cli._main import main as main
