"""The table `[judge]` of a recipe. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from omni_thinker.recipe.types import NonNegative, Positive, PositiveFloat, Table


class BudgetSpec(Table):
    """What judging may cost in all. Nothing set: no bound."""

    requests: Positive | None = None
    """Most requests."""
    tokens: Positive | None = None
    """Most tokens, of questions and replies together."""
    money: PositiveFloat | None = None
    """Most money, in the currency of `price`."""
    when_reached: Literal["stop", "abstain"] = "stop"
    """`stop`: the run ends after the step, with what it has. `abstain`: it goes on without verdicts."""


class PriceSpec(Table):
    """Money per million tokens."""

    input: NonNegative = 0.0
    """For tokens of a question."""
    output: NonNegative = 0.0
    """For tokens of a reply."""


class EndpointSpec(Table):
    """An OpenAI-compatible server: hosted, or vLLM, llama.cpp, Ollama, transformers serve."""

    base_url: str
    """Such as https://host/v1. Without https only on this machine, or with `allow_http`."""
    model: str
    """The model's name on that server."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key. Keys are never part of a recipe."""
    api_key_file: str = ""
    """A file that holds the key, in place of the variable."""
    allow_http: bool = False
    """Accept a server without https that isn't on this machine."""
    concurrency: Positive = 16
    """Most requests at a time."""
    requests_per_minute: PositiveFloat | None = None
    """Most requests a minute; none: no limit."""
    tokens_per_minute: PositiveFloat | None = None
    """Most tokens a minute; none: no limit."""
    timeout_s: PositiveFloat = 60.0
    """For one attempt."""
    deadline_s: PositiveFloat = 300.0
    """For one question with all its attempts."""
    attempts: Positive = 6
    """Requests for one question, failed ones included."""
    patience_s: NonNegative = 900.0
    """How long a server that has answered before may be away (no connection, or status 502 to 504) before questions
    are given up."""
    temperature: NonNegative = 0.0
    """Of the judge's replies."""
    max_tokens: Positive = 256
    """Tokens of one reply, its thoughts included."""
    structured: Literal["auto", "schema", "text"] = "auto"
    """Whether a JSON schema is asked for; `auto` gives that up where the server refuses it."""
    verdict: Literal["text", "logprobs"] = "text"
    """`text`: a sentence and a verdict. `logprobs`: one digit, weighed by the server's log-probs, where it tells them;
    cheap, and without a word of reason."""
    prompt: str = ""
    """For pairs; default: pairwise-v1, or pairwise-digit-v1 with log-probs."""
    ranking_prompt: str = "ranking-v1"
    """For the part `ranking`."""
    rubric_prompt: str = "rubric-v1"
    """For the part `rubric`."""
    both_seats: bool = True
    """Ask twice, with the answers in either order; verdicts that differ are ties. Costs two requests a verdict."""
    strip_markdown: bool = False
    """Show both answers without markup, so that it can't count."""
    budget: BudgetSpec = BudgetSpec()
    """What judging may cost."""
    price: PriceSpec = PriceSpec()
    """What a request costs."""
    cache: str = ""
    """The file of replies; default: judge.sqlite in the cache folder. "none": no cache."""


class JudgeSpec(Table):
    """Who compares a response with the reference.

    `builtin`: the built-in model, trained to judge. `likelihood`: the more likely text under a frozen `model` wins.
    `endpoint`: a model behind an API is asked."""

    kind: Literal["builtin", "likelihood", "endpoint"] = "builtin"
    """Which judge it is."""
    endpoint: EndpointSpec | None = None
    """The server to ask, for `endpoint`."""
    model: str = "builtin"
    """The frozen model, for `likelihood`: as `model.name`."""
    margin: NonNegative = 0.1
    """Log-odds of being the better one (builtin) or nats per token (likelihood); smaller differences are ties."""
    longest_win: Annotated[float, Field(ge=1.0)] | None = None
    """Length-controlled preference: a win by a text more than this many times as long as the other is a tie."""
    reference_temperature: NonNegative = 1.0
    """At which the starting model writes the references that rows don't bring along. At the sampling temperature the
    start is as likely to win as to lose, so a preference above one half means better than the start."""

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "JudgeSpec":
        if self.kind == "endpoint" and self.endpoint is None:
            raise ValueError("a judge of kind 'endpoint' needs [judge.endpoint] with base_url and model")
        return self
