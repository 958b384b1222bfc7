"""The page served: as an ASGI application, on this machine unless keys let others in, and from a notebook."""

import html
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr
import gradio.themes
from fastapi import FastAPI

from steerfn.board._app import Page
from steerfn.board._door import Door
from steerfn.board._in_loop import in_loop
from steerfn.board._presets import Presets
from steerfn.board._source import Source
from steerfn.board._state import State
from steerfn.model import Model, Tokenizer, unwrap_model
from steerfn.model.demo import HUB as DEMO
from steerfn.output import render
from steerfn.serving import Keys, host_name, known_hosts
from steerfn.values import DataError, SteerError, fingerprint, integer, public

HERE = ("127.0.0.1", "localhost", "::1")
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")
MOST = "64mb"
"""Bytes of a file of texts."""


def theme() -> Any:
    """The look of the page: the system's own fonts, and one colour."""
    made = gradio.themes.Base(
        primary_hue="blue", secondary_hue="blue", neutral_hue="slate", font=SANS, font_mono=MONO, radius_size="sm"
    )
    return made.set(
        button_primary_background_fill="#0b5cad", button_primary_background_fill_dark="#1f6fc4",
        button_primary_background_fill_hover="#094b8d", button_primary_background_fill_hover_dark="#1b62ad",
        button_large_text_size="*text_md", button_large_text_weight="500",
        button_large_padding="*spacing_md 1rem",
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700", block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200", input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )  # fmt: skip


def check_keys(host: str, api_keys: Any) -> Keys:
    """The keys of a page.

    Raises:
        SteerError: another host than this machine's without keys.
        DataError: keys that would leave the page open, or that are for some vectors only.
    """
    keys = Keys(api_keys)
    if host_name(host) not in HERE and keys.open:
        raise SteerError(
            f"A page at {host}, where others can reach it, needs keys: pass --api-keys FILE (api_keys=[...]), or keep "
            "it at 127.0.0.1."
        )
    if isinstance(api_keys, dict) and any(each is not None for each in api_keys.values()):
        raise DataError(
            "A key of the page lets its bearer use, make and save every vector, so it cannot be one for some of them; "
            "leave out what follows the keys, or use steerfn serve."
        )
    return keys


def app(page: Page, keys: Keys, allowed_hosts: Iterable[str] = ()) -> Any:
    """The ASGI application of a page, as `dashboard` serves it.

    Args:
        page: the page.
        keys: who may use it.
        allowed_hosts: further names under which it may be asked for.
    """

    def mount() -> Any:
        return gr.mount_gradio_app(
            FastAPI(openapi_url=None), page.blocks, path="/", footer_links=[], ssr_mode=False, pwa=False,
            enable_monitoring=False, mcp_server=False, show_error=False, max_file_size=MOST, theme=theme(),
            css=str(render("board/board.css")),
        )  # fmt: skip

    return Door(in_loop(mount), keys, known_hosts(allowed_hosts))


class Dashboard:
    """A page that is being served by a thread of this process; see `dashboard`.

    Attributes:
        url: where it is.
    """

    def __init__(self, application: Any, host: str, port: int) -> None:
        import uvicorn

        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            listening.bind((host, port))
        except OSError as error:
            listening.close()
            raise SteerError(f"The page cannot be served at {host}:{port} ({error}); pass another port.") from None
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
        self._server = uvicorn.Server(
            uvicorn.Config(application, log_level="error", proxy_headers=False, timeout_graceful_shutdown=2)
        )
        self._thread = threading.Thread(
            target=self._server.run, args=([listening],), name="steerfn-dashboard", daemon=True
        )
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.01)

    def wait(self) -> None:
        """Until it is closed, or interrupted."""
        while self._thread.is_alive():
            self._thread.join(1.0)

    def close(self) -> None:
        """Stop serving."""
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> "Dashboard":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Dashboard at {self.url}"

    def _repr_html_(self) -> str:
        url = html.escape(self.url)
        return (
            f'<p>Dashboard at <a href="{url}">{url}</a></p>'
            f'<iframe src="{url}" title="steerfn dashboard" width="100%" height="900" style="border:0"></iframe>'
        )


def _name_of(model: Any) -> str:
    """The source that loads a model again: "demo", or a name or folder."""
    model = unwrap_model(model)
    name = str(getattr(model, "name_or_path", ""))
    if fingerprint(model)["name"] == DEMO and Path(name).is_dir():  # it lies in the cache of the demo model
        return "demo"
    return name or getattr(model.config, "model_type", "model")


@public
def dashboard(
    model: Model,
    tokenizer: Tokenizer,
    vectors: Any = None,
    *,
    state: State | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    api_keys: Iterable[str] | None = None,
    allowed_hosts: Iterable[str] = (),
) -> Dashboard:
    """A page to try vectors on, in the browser or in the notebook's own page; it goes on until it is closed.

    Unsteered and steered texts stream side by side; a sweep shows what a strength does; the next token, the reading of
    a text and the push beside the stream are drawn; vectors are made from texts and saved. Everything that is set is a
    `State`, of which the page gives the Python, the command line, a link and a file. The page loads nothing from
    elsewhere.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        vectors: a folder of vector files, in which new ones are saved; a mapping of names to vectors, or one or a list
            of them, beside which new ones are kept in memory.
        state: what is shown first.
        host: the address to listen at; another than this machine's needs keys.
        port: 0 takes any that is free.
        api_keys: keys of which every visitor must give one; None asks for no key.
        allowed_hosts: host names at which the page is known, besides localhost and the address of the connection.

    Returns:
        A `Dashboard`: `.url`, `.close()`; a notebook shows the page.

    Raises:
        DataError: vectors that are not vectors, or keys that would leave the page open.
        FileError: a vector's file, where its folder is meant.
        SteerError: another host without keys, a port that is taken, or Gradio is not installed.

    Example:
        >>> import steerfn as sf
        >>> with sf.dashboard(model, tokenizer, {"happy": v}) as page:
        ...     print(page)  # open it in a browser
        Dashboard at http://127.0.0.1:...
    """
    keys, port = check_keys(host, api_keys), integer("port", port, 0, 65535, hint="0 takes any that is free")
    folder = str(vectors) if isinstance(vectors, (str, Path)) else None
    page = Page(model, tokenizer, Presets(vectors, model), Source(_name_of(model), folder=folder), state or State())
    return Dashboard(app(page, keys, [*allowed_hosts, host]), host, port)
