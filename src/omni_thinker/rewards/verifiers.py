"""Environments of the package `verifiers` (an extra): their rollouts with our answers, and their rubrics as a reward.

An environment runs its own rollout, from its set-up to its clean-up, and asks a client for answers. The client here is
ours: it holds still until the policy has answered."""

import asyncio
import importlib
import json
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.rewards.parts import Part
from omni_thinker.types import Group, Problem, Sample, Score

ROLLOUT = "rollout"
"""Where a conversation's memory keeps its `Rollout`."""
_ROW, _NAME, _OPTIONS = "row", "environment", "options"
_HOOKED = (signal.SIGINT, signal.SIGTERM)


def hosted_in(problem: Problem) -> "Hosted":
    """The environment of a problem, loaded once. Raises UserError where it can't be."""
    data = problem.data["verifiers"]
    return load(str(data[_NAME]), json.dumps(data[_OPTIONS], sort_keys=True))


def data_of(name: str, options: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """What the data of a problem holds of its environment."""
    return {"verifiers": {_NAME: name, _OPTIONS: dict(options), _ROW: dict(row)}}


@cache
def load(name: str, options: str) -> "Hosted":
    """The environment called `name`, made with the options, a JSON table.

    Raises UserError where the package or the environment can't be had, and for those that can't be trained here."""
    try:
        package: Any = importlib.import_module("verifiers")
        make, client = package.load_environment, package.Client
    except ImportError:
        raise UserError("needs the package verifiers; run: pip install 'omni-thinker[verifiers]'") from None
    except AttributeError as exc:  # later versions have programs that call a model themselves
        raise UserError(f"needs a verifiers of 0.1.14 or later, below 0.2: {exc}") from None
    try:
        environment = _with_own_signals(lambda: make(name, **json.loads(options)))
    except Exception as exc:  # a module of somebody's own may raise anything
        raise UserError(f"verifiers can't load {name!r}: {exc}") from None
    if not isinstance(environment, package.MultiTurnEnv):
        raise UserError(f"{name!r} is a {type(environment).__name__}, which has no turns that can be taken here")
    if getattr(environment, "tool_defs", None):
        raise UserError(f"{name!r} gives the model tools to call, which no answer here can")
    weights = [float(weight) for weight in environment.rubric._get_reward_weights()]
    if not any(weight > 0 for weight in weights):
        raise UserError(f"the rubric of {name!r} gives no reward")
    return Hosted(environment, sum(weight for weight in weights if weight > 0), _client_class(client))


def _with_own_signals(make: Callable[[], Any]) -> Any:
    """What `make` makes, without the handlers that it sets for Ctrl-C: a run has its own."""
    if threading.current_thread() is not threading.main_thread():
        return make()
    before = {number: signal.getsignal(number) for number in _HOOKED}
    try:
        return make()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Hosted:
    """A loaded environment. `most`: the reward that its rubric gives where every part is 1."""

    def __init__(self, environment: Any, most: float, client: Callable[["Rollout"], Any]) -> None:
        self.environment, self.most, self._client = environment, most, client

    @property
    def turns(self) -> int | None:
        """Most answers; None where it sets no bound."""
        most = int(self.environment.max_turns)
        return most if most > 0 else None

    def begin(self, problem: Problem) -> "Rollout":
        """A rollout that waits for the first answer. In a running event loop."""
        row = json.loads(json.dumps(problem.data["verifiers"][_ROW]))
        return Rollout(self.environment, row, self._client)


class Rollout:
    """One rollout of an environment in an event loop, answer by answer."""

    def __init__(self, environment: Any, row: Mapping[str, Any], client: Callable[["Rollout"], Any]) -> None:
        self._questions: asyncio.Queue[Sequence[Any]] = asyncio.Queue()
        self._answers: asyncio.Queue[tuple[str, bool] | None] = asyncio.Queue()
        self._row = row
        self.answered = 0
        self._task = asyncio.create_task(environment.rollout(row, client(self), "policy"))

    async def ask(self, messages: Sequence[Any]) -> tuple[str, bool] | None:
        """Called by the client: the policy's answer to `messages`, and whether it was cut off; None for no more."""
        self._questions.put_nowait(messages)
        return await self._answers.get()

    async def answer(self, text: str, *, cut: bool = False) -> str | None:
        """Give the policy's answer; what the environment says to it, None where it ends the rollout.

        Raises ValueError where it doesn't ask as its data set says, or says something besides text."""
        if not self.answered:
            first = await self._asked()
            if first is None or _texts(first) != _texts(self._row["prompt"]):
                raise ValueError("the environment doesn't begin with the prompt of its data set")
        self.answered += 1
        self._answers.put_nowait((text, cut))
        messages = await self._asked()
        if messages is None:
            return None
        last = max(place for place, message in enumerate(messages) if _role(message) == "assistant")
        if any(_role(message) == "tool" for message in messages[last + 1 :]):
            raise ValueError("the environment answers a call of a tool, which no answer here can make")
        return "\n\n".join(_texts(messages[last + 1 :]))

    async def finish(self) -> Any:
        """The state in the end; where the environment still waits for an answer, there is none."""
        if not self._task.done():
            self._answers.put_nowait(None)
        return await self._task

    async def _asked(self) -> Sequence[Any] | None:
        question = asyncio.ensure_future(self._questions.get())
        await asyncio.wait({question, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if question.done():
            return question.result()
        question.cancel()
        self._task.result()  # raises what it raised
        return None


class Verifiers(Part):
    """The environment's own rubric on the whole conversation: its weighed sum, over the sum of its weights above 0.

    What is below 0 or above 1 then counts as that, with the reason. An error of the rollout is an error. A reward
    function that raises is 0 to the package, which logs it."""

    async def score(self, group: Group, problem: Problem) -> list[Score]:
        hosted = hosted_in(problem)
        ends = await asyncio.gather(*(_ended(sample, hosted, problem) for sample in group.samples))
        states = [end for end in ends if not isinstance(end, Score)]
        if states:
            await hosted.environment.rubric.score_group(states)
        for state in states:
            await hosted.environment.rubric.cleanup(state)
        return [end if isinstance(end, Score) else _score(end, hosted.most) for end in ends]

    def check(self, problem: Problem) -> str | None:
        if not isinstance(problem.data.get("verifiers"), Mapping):
            return "verifiers needs problems of the source verifiers:NAME"
        return None


async def _ended(sample: Sample, hosted: Hosted, problem: Problem) -> Any:
    """The state of a sample's conversation, with the answers that its environment has not seen; an error where there is
    none."""
    memory: Mapping[str, Any] = {} if sample.dialogue is None else sample.dialogue.memory
    rollout: Rollout = memory.get(ROLLOUT) or hosted.begin(problem)
    answers = (sample.text,) if sample.dialogue is None else sample.dialogue.answers
    try:
        for text in answers[rollout.answered :]:
            await rollout.answer(text, cut=sample.stop == "length")
        state = await rollout.finish()
    except Exception as exc:  # the environment's bug, never a 0 for the model
        return Score.error(f"the environment's rollout: {type(exc).__name__}: {exc}"[:300])
    if state.get("error") is not None:
        return Score.error(f"the environment's rollout: {state['error']!r}"[:300])
    return state


def _score(state: Any, most: float) -> Score:
    share = float(state["reward"]) / most
    value = min(1.0, max(0.0, share))
    parts = {str(name): float(one) for name, one in (state["metrics"] or {}).items()}
    return Score("value", value, parts, None if value == share else f"the rubric gave {share:g} of 1")


def _role(message: Any) -> str:
    return str(message["role"] if isinstance(message, Mapping) else message.role)


def _texts(messages: Sequence[Any]) -> list[str]:
    """The words of messages. Raises ValueError for those that hold something else."""
    texts = []
    for message in messages:
        content = message["content"] if isinstance(message, Mapping) else message.content
        if not isinstance(content, str):
            raise ValueError("a message of the environment holds something besides text")
        texts.append(content)
    return texts


def _client_class(base: type[Any]) -> Callable[[Rollout], Any]:
    """The client of the package that asks a rollout."""
    types: Any = importlib.import_module("verifiers.types")
    errors: Any = importlib.import_module("verifiers.errors")

    async def get_response(self: Any, prompt: Sequence[Any], model: str, *_: Any, **__: Any) -> Any:
        said = await self.client.ask(prompt)
        if said is None:
            raise errors.OverlongPromptError("there is no further turn")
        text, cut = said
        message = types.ResponseMessage(content=text, finish_reason="length" if cut else "stop", is_truncated=cut)
        return types.Response(id="", created=0, model=model, message=message)

    unused = dict.fromkeys(base.__abstractmethods__)
    made: Callable[[Rollout], Any] = type("PolicyClient", (base,), {**unused, "get_response": get_response})
    return made
