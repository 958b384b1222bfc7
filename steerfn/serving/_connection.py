"""Closing connections that never send a whole request, since nothing else would."""

from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


def patient_protocol(seconds: float) -> Any:
    """An HTTP protocol for uvicorn that closes a connection whose request head is incomplete after some seconds.

    Bodies are left to `Guard`, and uvicorn itself closes a connection that is silent between requests.
    """

    base: Any = AutoHTTPProtocol  # which of two it is depends on what is installed

    class Patient(base):
        _impatient: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_watching()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Run the clock while a request is awaited, from its first byte; stop it when one is there."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_watching()
            elif self._impatient is None:
                self._impatient = self.loop.call_later(seconds, self._close)

        def _stop_watching(self) -> None:
            if self._impatient is not None:
                self._impatient.cancel()
                self._impatient = None

        def _close(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Patient
