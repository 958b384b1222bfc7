"""Reading: the hidden states of many texts, with no token computed twice and no block that nobody asked for."""

from steerfn.reading._engine import Batch as Batch
from steerfn.reading._engine import Plan as Plan
from steerfn.reading._engine import plan as plan
from steerfn.reading._engine import run as run
from steerfn.reading._engine import sinks_of as sinks_of
from steerfn.reading._positions import Position as Position
from steerfn.reading._positions import Read as Read
from steerfn.reading._positions import explained as explained
from steerfn.reading._positions import position_name as position_name
from steerfn.reading._positions import position_named as position_named
from steerfn.reading._positions import reads as reads
