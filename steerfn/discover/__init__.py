"""Discovery: from texts to steering vectors, one method a file."""

from steerfn.discover._mean import mean_difference as mean_difference
