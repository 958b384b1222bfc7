"""A request that cannot be served, with its HTTP status; the message goes to the caller."""


class RequestError(Exception):
    """The refusal of a request.

    Args:
        message: a sentence with the values and the fix.
        status: of HTTP.
        param: the field that is wrong, if one is.
        code: a word for programs.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code

    def body(self) -> dict[str, dict[str, str | None]]:
        """The body of the response, in the form of OpenAI's API."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
