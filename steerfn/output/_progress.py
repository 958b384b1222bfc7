"""Bars on stderr, or on a notebook's page; and the one switch for ours and for those of the libraries beneath."""

import contextlib
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from steerfn.values import SteerError, public

VERBOSITY = "TRANSFORMERS_VERBOSITY"
_silences = 0
"""How many of `silence` are open."""
_switched_off = contextlib.ExitStack()
"""What `set_progress(False)` has turned off."""


@public
def set_progress(shown: bool) -> None:
    """Turns every progress bar and banner off, or on again, in the whole process.

    Off, no function shows a bar, whatever its `progress=` says, and nor do the libraries beneath: transformers (its
    loading bars, and what it logs below an error), the hub client, torchao, and datasets where it is imported already.
    On, which it is to begin with, is how they were before. Warnings and errors are shown either way.

    Args:
        shown: whether to show them.

    Raises:
        SteerError: `shown` is not True or False.

    Example:
        >>> import steerfn as sf
        >>> sf.set_progress(False)
        >>> sf.set_progress(True)
    """
    if not isinstance(shown, bool):
        raise SteerError(f"set_progress takes True or False, not {shown!r}.")
    _switched_off.close()
    if not shown:
        _switched_off.enter_context(silence())


def progress_bar(
    name: str, unit: str, progress: bool, items: Iterable[Any] | None = None, *, leave: bool = False, **shape: Any
) -> Any:
    """A tqdm bar on stderr, or in a notebook on its page.

    Args:
        name: what the user reads before the bar.
        unit: what is counted.
        progress: False shows nothing.
        items: what to iterate over; else the caller calls `update`.
        leave: let it stand when it is full.
        **shape: what else tqdm takes, such as `total` and `initial`.

    Example:
        >>> with progress_bar("Waiting", "step", progress=False, total=2) as bar:
        ...     bar.update()
    """
    from tqdm import tqdm

    file: Any = _Page() if _in_notebook() else None  # None is stderr
    disable = not progress or _silences > 0
    return tqdm(items, desc=name, unit=unit, file=file, disable=disable, leave=leave, **shape)


@contextlib.contextmanager
def stage(name: str, progress: bool, folder: Path | None = None, total: float = 0.0) -> Iterator[None]:
    """Shows a bar for a step that cannot count itself: it moves with the bytes in a folder, else with the clock.

    Args:
        name: what the user reads before the bar.
        progress: False shows nothing.
        folder: its files are counted, several times a second, in a thread.
        total: how many bytes they will be in the end.

    Example:
        >>> with stage("Waiting", progress=False):
        ...     pass
    """
    done = threading.Event()
    shape: dict[str, Any] = {"bar_format": "{desc}: {elapsed}"}
    if folder is not None:
        shape = {"total": int(total), "unit_scale": True}

    def watch() -> None:
        while not done.wait(0.3):
            with contextlib.suppress(OSError):  # files come and go while they are counted
                files = folder.rglob("*") if folder else ()
                bar.n = min(sum(f.stat().st_size for f in files), int(total))
            bar.refresh()

    with progress_bar(name, "B", progress, leave=True, **shape) as bar:
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
            bar.n = int(total)
        finally:
            done.set()
            thread.join()


def _in_notebook() -> bool:
    """Whether this process shows what it has to show on a notebook's page, not in a terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class _Page(io.TextIOBase):
    """Where a bar is drawn in a notebook: an output of its own, which is overwritten, and empty once the bar is gone.

    On stderr it would stay in the file, on red; of a widget there would stay that it is not found.
    """

    encoding = "utf-8"  # tqdm asks for it before it draws with blocks

    def __init__(self) -> None:
        self._output: Any = None

    def write(self, text: str, /) -> int:
        """Draw the bar; what does not begin a line anew only moves the cursor of a terminal."""
        from IPython.display import display

        if text.startswith("\r"):
            shown = {"text/plain": text.strip()}
            if self._output is None:
                self._output = display(shown, raw=True, display_id=True)
            else:
                self._output.update(shown, raw=True)
        return len(text)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """No bar and no banner, neither ours nor anybody else's."""
    global _silences
    with no_bars(), no_advice():
        _silences += 1
        try:
            yield
        finally:
            _silences -= 1


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Silences the bars of the libraries beneath, which would break ours, and what torchao says when it is imported."""
    import huggingface_hub.utils as hub
    from transformers.utils import logging as theirs

    switches: list[tuple[bool, Any, Any]] = [
        (theirs.is_progress_bar_enabled(), theirs.enable_progress_bar, theirs.disable_progress_bar)
    ]
    libraries: tuple[Any, ...] = hub, sys.modules.get("datasets")
    for library in libraries:
        if hasattr(library, "are_progress_bars_disabled"):  # the user may have another module of that name
            loud = not library.are_progress_bars_disabled()
            switches.append((loud, library.enable_progress_bars, library.disable_progress_bars))
    with no_banners():
        _turn([off for _, _, off in switches])
        try:
            yield
        finally:
            _turn([on if loud else off for loud, on, off in switches])


def _turn(switches: Iterable[Callable[[], Any]]) -> None:
    with warnings.catch_warnings():  # the hub client warns where its environment variable says otherwise
        warnings.simplefilter("ignore")
        for switch in switches:
            switch()


@contextlib.contextmanager
def no_banners(*others: str) -> Iterator[None]:
    """Silences what torchao (and other loggers) log below an error: kernels that nobody asked for were not loaded."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree", *others)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def no_advice() -> Iterator[None]:
    """Silences what transformers logs below an error, and what torchao does."""
    set_by_user = VERBOSITY in os.environ
    os.environ.setdefault(VERBOSITY, "error")  # read when it is imported; it need not be now
    try:
        with no_banners("transformers"):
            yield
    finally:
        if not set_by_user:
            del os.environ[VERBOSITY]
