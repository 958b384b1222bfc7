"""Checks made before the slow work starts: loading a model takes minutes, and a run takes hours."""

import argparse
from typing import Any

from steerfn.output import check_result_file
from steerfn.values.files import check_output


def check_files(options: argparse.Namespace, *names: str) -> None:
    """Refuse files that could not be written.

    Args:
        names: those of its options that name a file. Of "out", a result, the suffix has to say the form.

    Raises:
        FileError: one of them.
    """
    for name in names:
        if (path := getattr(options, name)) is not None:
            check = check_result_file if name == "out" else check_output
            check(path, f"The file of --{name}")


def metrics_of(options: argparse.Namespace) -> dict[str, Any]:
    """The metrics that `--metric` names, each tried on a text, as a verb takes them; nothing where it names none.

    Raises:
        DataError: a name that is not known, or a metric that fails.
    """
    from steerfn.metrics import as_metrics, try_metrics

    if options.metric is None:
        return {}
    try_metrics(as_metrics(options.metric))
    return {"metrics": options.metric}


def sites_of(layers: list[int] | None, sites: list[str]) -> list[Any]:
    """The sites that options name.

    Raises:
        SiteError: a name that is not a site's.
    """
    from steerfn.values import Site

    return [*(layers or []), *map(Site.parse, sites)]
