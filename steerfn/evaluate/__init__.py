"""Evidence: does it steer, by how much, at what cost, and how sure are we.

Statistics over prompts, comparisons of vectors, and the protocols of published papers.
"""

from steerfn.evaluate._among import among as among
from steerfn.evaluate._benchmark import benchmark as benchmark
from steerfn.evaluate._compare import compare as compare
from steerfn.evaluate._compare_vectors import compare_vectors as compare_vectors
from steerfn.evaluate._comparison import Comparison as Comparison
from steerfn.evaluate._outcome import Outcome as Outcome
from steerfn.evaluate._pairs import Pair as Pair
from steerfn.evaluate._statistics import Difference as Difference
from steerfn.evaluate._statistics import Estimate as Estimate
from steerfn.evaluate._statistics import by_prompt as by_prompt
from steerfn.evaluate._statistics import estimate as estimate
from steerfn.evaluate._statistics import holm as holm
from steerfn.evaluate._statistics import paired as paired
from steerfn.evaluate._statistics import proportion as proportion
from steerfn.evaluate._statistics import ratio as ratio
from steerfn.evaluate._vector_comparison import VectorComparison as VectorComparison
