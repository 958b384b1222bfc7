"""The command line: `steerfn demo | discover | generate | inspect`."""

from steerfn.cli._main import main as main
