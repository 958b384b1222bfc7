"""Reports: one HTML page on one vector that a reviewer can sign."""

from steerfn.reporting._card import card as card
from steerfn.reporting._report import Report as Report
from steerfn.reporting._report import report as report
