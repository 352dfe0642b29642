"""Addresses of services, checked before anything is asked. Imports no torch."""

from urllib.parse import urlsplit

from omni_thinker.errors import UserError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_address(url: str, key: str, *, allow_http: bool, secrets: str) -> None:
    """Raises UserError, naming `key`, for what is no address, holds a password, or would be asked without encryption.

    secrets: where a key belongs instead. The key beside `key` that allows http is called allow_http."""
    if "@" in url:  # before anything is said that would show it
        raise UserError(f"must not contain a password; use {secrets}", key=key)
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError as exc:
        raise UserError(f"isn't an address: {exc}", key=key) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"must be an http(s) address such as https://host/v1, got {url!r}", key=key)
    if parts.scheme == "http" and not is_loopback(url) and not allow_http:
        allow = f"{key.rpartition('.')[0]}.allow_http"
        raise UserError(
            f"{parts.hostname} would be asked without encryption; use https, or set {allow} = true", key=key
        )


def is_loopback(url: str) -> bool:
    """Whether an address is of this machine."""
    return urlsplit(url).hostname in _LOOPBACK
