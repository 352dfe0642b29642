"""The address and the key of an endpoint, checked before anything is asked."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from omni_thinker.errors import UserError
from omni_thinker.recipe import EndpointSpec

NO_KEY = "none"
"""What is sent where no key is needed."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_address(spec: EndpointSpec) -> None:
    """Raises UserError for what is no address, holds a password, or would be asked without encryption."""
    try:
        parts = urlsplit(spec.base_url)
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError as exc:
        raise UserError(f"isn't an address: {exc}", key="judge.endpoint.base_url") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"must be an http(s) address such as https://host/v1, got {spec.base_url!r}", key="judge.endpoint.base_url"
        )
    if parts.username or parts.password:
        raise UserError("must not contain a password; use api_key_env or api_key_file", key="judge.endpoint.base_url")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not spec.allow_http:
        raise UserError(
            f"{parts.hostname} would be asked without encryption; use https, or set judge.endpoint.allow_http = true",
            key="judge.endpoint.base_url",
        )


def secret(spec: EndpointSpec) -> str:
    """The key: from a file if one is named, else from the environment. Servers on this machine need none."""
    if spec.api_key_file:
        try:
            return Path(spec.api_key_file).expanduser().read_text("utf-8").strip()
        except (OSError, ValueError) as exc:
            raise UserError(
                f"the judge's key can't be read: {type(exc).__name__}", key="judge.endpoint.api_key_file"
            ) from None
    key = os.environ.get(spec.api_key_env, "").strip()
    if not key.isascii():
        raise UserError("the judge's key has characters that a key can't have", key="judge.endpoint.api_key_env")
    if not key and urlsplit(spec.base_url).hostname not in _LOOPBACK:
        raise UserError(f"the environment variable {spec.api_key_env} isn't set", key="judge.endpoint.api_key_env")
    return key or NO_KEY
