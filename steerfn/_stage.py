"""A bar on stderr for a step that cannot count itself (another process, another library)."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def stage(name: str, progress: bool, folder: Path | None = None, total: float = 0.0) -> Iterator[None]:
    """Shows a bar that moves: with the bytes in a folder, else with the clock.

    Args:
        name: what the user reads before the bar.
        progress: False shows nothing.
        folder: its files are counted, several times a second, in a thread.
        total: how many bytes they will be in the end.

    Example:
        >>> with stage("Waiting", progress=False):
        ...     pass
    """
    from tqdm import tqdm

    done = threading.Event()
    shape: dict[str, Any] = {"bar_format": "{desc}: {elapsed}"}
    if folder is not None:
        shape = {"total": int(total), "unit": "B", "unit_scale": True}

    def watch() -> None:
        while not done.wait(0.3):
            with contextlib.suppress(OSError):  # files come and go while they are counted
                files = folder.rglob("*") if folder else ()
                bar.n = min(sum(f.stat().st_size for f in files), int(total))
            bar.refresh()

    with tqdm(desc=name, disable=not progress, **shape) as bar:
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
            bar.n = int(total)
        finally:
            done.set()
            thread.join()


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Silences the bars of transformers and of the hub client, which would break ours."""
    from huggingface_hub import constants
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    loud = logging.is_progress_bar_enabled()
    # The hub client warns when told otherwise than its environment variable says.
    free = constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    loud_hub = free and not hub.are_progress_bars_disabled()
    logging.disable_progress_bar()
    if loud_hub:
        hub.disable_progress_bars()
    try:
        yield
    finally:
        if loud:
            logging.enable_progress_bar()
        if loud_hub:
            hub.enable_progress_bars()
