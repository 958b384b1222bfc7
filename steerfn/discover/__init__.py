"""Discovery: from texts to steering vectors, one method a file."""

from steerfn.discover._lint import Finding as Finding
from steerfn.discover._lint import LintReport as LintReport
from steerfn.discover._lint import lint_pairs as lint_pairs
from steerfn.discover._mean import mean_difference as mean_difference
from steerfn.discover._torchrun import torchrun as torchrun
from steerfn.discover._workers import Workers as Workers
