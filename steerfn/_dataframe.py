"""Records as a pandas DataFrame, for those who have pandas."""

from collections.abc import Sequence
from typing import Any

from steerfn._errors import DataError


def dataframe(records: Sequence[dict[str, Any]]) -> Any:
    """A DataFrame with one row for each record.

    Raises:
        DataError: pandas is not installed.
    """
    try:
        import pandas  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError("to_pandas needs pandas, which is not installed: pip install pandas.") from None
    return pandas.DataFrame(records)
