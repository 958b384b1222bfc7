"""What chance alone would do to two sides of texts, computed exactly."""

import math


def chance_gap(count: int, n: int, m: int) -> float:
    """The mean of `|k/n - (count-k)/m|` when `count` of `n + m` texts are dealt to two sides (hypergeometric)."""
    return sum(
        math.exp(_log_choose(n, k) + _log_choose(m, count - k) - _log_choose(n + m, count))
        * abs(k / n - (count - k) / m)
        for k in range(max(0, count - m), min(n, count) + 1)
    )


def two_sided(k: int, n: int, p: float) -> float:
    """The two-sided binomial p-value: the probability of all counts that are no likelier than `k` of `n`."""
    logs = [_log_choose(n, i) + i * math.log(p) + (n - i) * math.log1p(-p) for i in range(n + 1)]
    return min(1.0, sum(math.exp(each) for each in logs if each <= logs[k] + 1e-9))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
