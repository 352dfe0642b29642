"""The address and the key of an endpoint, checked before anything is asked."""

import os
from pathlib import Path

from omni_thinker.address import check_address as check_any
from omni_thinker.address import is_loopback
from omni_thinker.errors import UserError
from omni_thinker.recipe import EndpointSpec

NO_KEY = "none"
"""What is sent where no key is needed."""


def check_address(spec: EndpointSpec) -> None:
    """Raises UserError for what is no address, holds a password, or would be asked without encryption."""
    check_any(
        spec.base_url, "judge.endpoint.base_url", allow_http=spec.allow_http, secrets="api_key_env or api_key_file"
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
    if not key and not is_loopback(spec.base_url):
        raise UserError(f"the environment variable {spec.api_key_env} isn't set", key="judge.endpoint.api_key_env")
    return key or NO_KEY
