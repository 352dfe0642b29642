"""The connection to a training service: its client, how long is waited, and what is asked twice.

What changes weights is asked again only where the service can't have heard it, or where it counts requests and drops
repeats. With an unknown outcome the run ends; resumed, it begins from the last state that the service saved."""

import asyncio
import atexit
import json
import logging
import os
import re
import threading
import urllib.request
import weakref
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from http.client import HTTPException
from time import monotonic
from typing import Any, Literal

from omni_thinker.address import check_address, is_loopback
from omni_thinker.errors import UserError
from omni_thinker.policy.tinker.losses import Row, ServiceLoss
from omni_thinker.policy.tinker.moments import Adam
from omni_thinker.recipe.engines.tinker import TinkerSpec

Kind = Literal["hosted", "skyrl"]
KEY = "TINKER_API_KEY"
_URL = "TINKER_BASE_URL"
_NO_KEY = "tml-none"
"""What a service on this machine is sent; the client insists on something like it."""
_LONGEST_PAUSE_S = 15.0
_BRIEF_S = 3.0
_FIRST_PAGE = 1 << 20
"""Bytes of it that are read."""
_DETAIL = re.compile(r"""['"]detail['"]: ['"](.*?)['"]}""")
"""What a server says, in what the client makes of it."""
_log = logging.getLogger(__name__)


def check_service(spec: TinkerSpec) -> str:
    """The address of the service; "" for the hosted one, which the client knows.

    Raises UserError where the client or the key is missing, and for addresses that must not be asked."""
    try:
        import tinker  # noqa: F401
    except ImportError:
        raise UserError(
            "a training service needs its client: pip install tinker==0.24.1", key="engine.trainer"
        ) from None
    url = spec.url or os.environ.get(_URL, "").strip()
    if url:
        check_address(url, "engine.tinker.url", allow_http=spec.allow_http, secrets=KEY)
    if not os.environ.get(KEY, "").strip() and not (url and is_loopback(url)):
        raise UserError(f"the environment variable {KEY} isn't set", key="engine.tinker.url")
    return url.rstrip("/")


class Service:
    """A service, and whose it is."""

    def __init__(self, spec: TinkerSpec) -> None:
        """Raises UserError as `check_service`, and where nobody answers."""
        self.spec, self.url = spec, check_service(spec)
        os.environ.setdefault("TINKER_TELEMETRY", "0")  # else the client reports how it is used
        import tinker

        logging.getLogger("tinker").setLevel(logging.ERROR)  # what it retries and where it waits
        self.kind: Kind = _kind_at(self.url) if spec.server == "auto" else spec.server
        options: dict[str, Any] = {"base_url": self.url} if self.url else {}
        if self.url and is_loopback(self.url):
            options["api_key"] = os.environ.get(KEY, "").strip() or _NO_KEY
        if self.kind == "skyrl":
            options["max_retries"] = 0
        self._client = self.within(lambda: tinker.ServiceClient(**options), "open a session")
        self._holder = self.within(lambda: self._client.holder, "open a session")
        atexit.register(_close, weakref.ref(self._holder))
        if self.kind == "skyrl":
            _ask_once(self._holder, spec.patience_s)

    def models(self) -> list[str]:
        """Names of the models that it trains."""
        found = self.within(self._client.get_server_capabilities, "list its models")
        return [str(model.model_name) for model in found.supported_models]

    def trainer(self, base_model: str, rank: int, seed: int) -> "Trainer":
        """A new adapter of all linear layers but the head, whose factors `seed` draws."""

        def create() -> Any:
            return self._client.create_lora_training_client(base_model, rank=rank, seed=seed, train_unembed=False)

        return Trainer(self, self.within(create, "make an adapter"))

    def give_back(self, trainer: "Trainer") -> None:
        """Let SkyRL's server, which has places for few adapters, forget one; its saved states stay."""
        if self.kind == "skyrl":
            _unload(self._holder, trainer.model_id)

    def archive(self, model_id: str, name: str) -> str:
        """Where the sampler's weights called `name` can be fetched. Raises UserError where the service gives none."""
        rest = self._client.create_rest_client()
        identifier = name if self.kind == "skyrl" else f"sampler_weights/{name}"
        future = rest.get_checkpoint_archive_url(model_id, identifier)
        return str(self.result(future, "give the adapter away").url)

    def result(self, future: Any, what: str) -> Any:
        """What a future gives, within our patience. Raises UserError where it doesn't."""
        try:
            return future.result(timeout=self.spec.patience_s)
        except UserError:
            raise
        except Exception as exc:  # the client raises its own, httpx's, ValueError and AssertionError
            raise self.lost(what, exc) from exc

    def within(self, ask: Callable[[], Any], what: str) -> Any:
        """What a call of the client gives that has no limit of its own: with a service that is gone, it waits on."""
        future: Future[Any] = Future()

        def call() -> None:
            try:
                future.set_result(ask())
            except BaseException as exc:
                future.set_exception(exc)

        threading.Thread(target=call, name="omni-tinker", daemon=True).start()
        return self.result(future, what)

    def lost(self, what: str, exc: BaseException) -> UserError:
        """The line for a request that failed, whose outcome may be unknown."""
        if isinstance(exc, TimeoutError):
            why = f"didn't answer within {self.spec.patience_s:g} s"
        else:
            said = " ".join(str(exc).split()).replace(os.environ.get(KEY, "").strip() or "\0", "...")
            detail = _DETAIL.search(said)
            why = (detail[1] if detail else said)[:300] or type(exc).__name__
        return UserError(
            f"the training service failed to {what}: {why}; go on with --resume once it is back",
            key="engine.tinker.url",
        )


class Trainer:
    """One adapter at the service."""

    def __init__(self, service: Service, client: Any) -> None:
        self._service, self._client = service, client

    @property
    def model_id(self) -> str:
        return str(self._client.model_id)

    def forward(self, made: Sequence[Row], loss: ServiceLoss) -> Any:
        """Log-probs and losses of each row's targets, without a gradient."""
        return self._service.result(self._client.forward(_data(made), loss.name, loss.config), "compute log-probs")

    def forward_backward(self, made: Sequence[Row], loss: ServiceLoss) -> Any:
        """The same, and its gradient is added to what is there."""
        future = self._client.forward_backward(_data(made), loss.name, loss.config)
        return self._service.result(future, "compute a gradient")

    def optim_step(self, adam: Adam) -> dict[str, float]:
        """Make a step, and forget the gradient. What the service measures of it."""
        from tinker import types

        future = self._client.optim_step(types.AdamParams(**asdict(adam)))
        return dict(self._service.result(future, "make a step").metrics or {})

    def save(self, name: str) -> str:
        """Save weights and moments; where."""
        return str(self._service.result(self._client.save_state(name), "save its state").path)

    def load(self, path: str, *, moments: bool) -> None:
        """Weights and moments of a saved state, or its weights alone where the service knows how."""
        load = self._client.load_state_with_optimizer if moments else self._client.load_state
        self._service.result(load(path), f"load {path}")

    def save_for_sampler(self, name: str) -> None:
        """Keep the weights of now, to be fetched."""
        self._service.result(self._client.save_weights_for_sampler(name), "keep weights for sampling")

    def sampler(self) -> "Sampler":
        """Who draws from the weights of now."""
        ask = self._client.save_weights_and_get_sampling_client
        return Sampler(self._service.within(ask, "keep weights for sampling"))


class Sampler:
    """Draws from the weights that an adapter had."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def sample(self, prompt: Sequence[int], count: int, settings: dict[str, Any]) -> "Future[Any]":
        """`count` samples, as a future."""
        from tinker import types

        tokens = types.ModelInput.from_ints(list(prompt))
        future: Future[Any] = self._client.sample(tokens, count, types.SamplingParams(**settings))
        return future


def _data(made: Sequence[Row]) -> list[Any]:
    from tinker import types

    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(list(row.inputs)),
            loss_fn_inputs={"target_tokens": list(row.targets), **row.numbers},
        )
        for row in made
    ]


def _kind_at(url: str) -> Kind:
    """Whose service answers at an address. SkyRL's says what it is on its first page."""
    if not url:
        return "hosted"
    try:
        with urllib.request.urlopen(f"{url}/", timeout=10) as reply:  # noqa: S310 - http(s), as was checked
            page = json.loads(reply.read(_FIRST_PAGE))
    except (OSError, ValueError, HTTPException, RecursionError):
        return "hosted"
    return "skyrl" if isinstance(page, dict) and page.get("name") == "Tinker API Mock" else "hosted"


def _close(holder_of: Callable[[], Any]) -> None:
    """End a session that is still there. The client would try while the interpreter is taken apart, and complain."""
    if (holder := holder_of()) is not None:
        holder.close()
        holder.close = lambda: None


def _unload(holder: Any, model: str) -> None:
    from tinker import types
    from tinker.lib.client_connection_pool_type import ClientConnectionPoolType

    async def unload() -> None:
        with holder.aclient(ClientConnectionPoolType.TRAIN) as client:
            await client.models.unload(request=types.UnloadModelRequest(model_id=model), timeout=_BRIEF_S)

    with suppress(Exception):  # of a server that is gone; a live one forgets them with the session
        asked = holder.run_coroutine_threadsafe(unload())
        if threading.current_thread() is threading.main_thread():  # another may be the one that does the asking
            asked.result(timeout=_BRIEF_S)


def _ask_once(holder: Any, patience_s: float) -> None:
    """Let the client repeat only what can't have arrived: SkyRL makes a step for every request that it gets."""

    async def execute(ask: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        began, pause, said = monotonic(), 0.5, False
        while True:
            try:
                return await ask(*args, **kwargs)
            except Exception as exc:
                if not _never_arrived(exc) or monotonic() - began + pause > patience_s:
                    raise
                if not said:
                    _log.warning("the training service isn't there; it is asked again for up to %g s", patience_s)
                said = True
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    holder.execute_with_retries = execute


def _never_arrived(exc: BaseException) -> bool:
    """Whether a request failed before the service could take it: no connection was made, or it was turned away."""
    if getattr(exc, "status_code", None) == 429:
        return True
    cause: BaseException | None = exc
    while cause is not None:
        if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
