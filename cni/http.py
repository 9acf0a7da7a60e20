"""As much of HTTP/1.1 (RFC 9112) as one request and one answer a connection need. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

HEAD_BYTES_MAX: Final = 8 << 10
BODY_BYTES_MAX: Final = (1 << 20) + (64 << 10)
"""What the plugin sends at most: a configuration of 1 MiB and the variables."""

_REASONS: Final = {200: "OK", 400: "Bad Request", 404: "Not Found", 422: "Unprocessable Content",
                   503: "Service Unavailable"}  # fmt: skip


class MalformedRequestError(ValueError):
    """This is not, and never becomes, a request that is understood here."""


class HttpRequest(NamedTuple):
    """What was asked."""

    method: str
    path: str
    body: bytes


def read_request(received: bytes | bytearray) -> HttpRequest | None:
    """The request, None while it is not whole, MalformedRequestError when it cannot become one."""
    head, separator, rest = bytes(received).partition(b"\r\n\r\n")
    if len(head) > HEAD_BYTES_MAX:
        raise MalformedRequestError(f"the request's head is longer than {HEAD_BYTES_MAX} bytes")
    first, _, fields = head.partition(b"\r\n")
    if separator or b"\r\n" in head:
        method, path = _request_line(first)
    if not separator:
        return None
    length = _content_length(fields)
    if len(rest) < length:
        return None
    return HttpRequest(method, path, rest[:length])


def _request_line(line: bytes) -> tuple[str, str]:
    try:
        method, path, version = line.decode("ascii").split(" ")
    except ValueError:
        raise MalformedRequestError("the first line is not `METHOD PATH HTTP/1.1`") from None
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise MalformedRequestError(f"{version!r} is not HTTP/1.1")
    return method, path


def _content_length(fields: bytes) -> int:
    said = [line.partition(b":")[2].strip() for line in fields.split(b"\r\n") if _is_length(line)]
    if not said:
        return 0
    if len(set(said)) > 1 or not said[0].isdigit():
        raise MalformedRequestError("Content-Length is not one number")
    length = int(said[0][:20])
    if length > BODY_BYTES_MAX:
        raise MalformedRequestError(f"the body is longer than {BODY_BYTES_MAX} bytes")
    return length


def _is_length(line: bytes) -> bool:
    name = line.partition(b":")[0].lower()
    if name == b"transfer-encoding":
        raise MalformedRequestError("a chunked body is not understood")
    return name == b"content-length"


def response(status: int, body: bytes) -> bytes:
    """The whole answer."""
    kind = "application/json" if body[:1] in (b"{", b"[") else "text/plain; charset=utf-8"
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
