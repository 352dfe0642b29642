"""The table `[judge]` of a recipe. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from omni_thinker.recipe.types import NonNegative, Positive, PositiveFloat, Table


class BudgetSpec(Table):
    """What judging may cost in all. Nothing set: no bound."""

    requests: Positive | None = None
    tokens: Positive | None = None
    money: PositiveFloat | None = None
    """In the currency of `price`."""
    when_reached: Literal["stop", "abstain"] = "stop"
    """`stop`: the run ends after the step, with what it has. `abstain`: it goes on without verdicts."""


class PriceSpec(Table):
    """Money per million tokens."""

    input: NonNegative = 0.0
    output: NonNegative = 0.0


class EndpointSpec(Table):
    """An OpenAI-compatible server: hosted, or vLLM, llama.cpp, Ollama, transformers serve."""

    base_url: str
    """Such as https://host/v1. Without https only on this machine, or with `allow_http`."""
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key. Keys are never part of a recipe."""
    api_key_file: str = ""
    allow_http: bool = False
    concurrency: Positive = 16
    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    timeout_s: PositiveFloat = 60.0
    """For one attempt."""
    deadline_s: PositiveFloat = 300.0
    """For one question with all its attempts."""
    attempts: Positive = 6
    patience_s: NonNegative = 900.0
    """How long a server that has answered before may be away (no connection, or status 502 to 504) before questions
    are given up."""
    temperature: NonNegative = 0.0
    max_tokens: Positive = 256
    structured: Literal["auto", "schema", "text"] = "auto"
    """Whether a JSON schema is asked for; `auto` gives that up where the server refuses it."""
    verdict: Literal["text", "logprobs"] = "text"
    """`text`: a sentence and a verdict. `logprobs`: one digit, weighed by the server's log-probs, where it tells them;
    cheap, and without a word of reason."""
    prompt: str = ""
    """For pairs; default: pairwise-v1, or pairwise-digit-v1 with log-probs."""
    ranking_prompt: str = "ranking-v1"
    rubric_prompt: str = "rubric-v1"
    both_seats: bool = True
    """Ask twice, with the answers in either order; verdicts that differ are ties. Costs two requests a verdict."""
    strip_markdown: bool = False
    """Show both answers without markup, so that it can't count."""
    budget: BudgetSpec = BudgetSpec()
    price: PriceSpec = PriceSpec()
    cache: str = ""
    """The file of replies; default: judge.sqlite in the cache folder. "none": no cache."""


class JudgeSpec(Table):
    """Who compares a response with the reference.

    `builtin`: the built-in model, trained to judge. `likelihood`: the more likely text under a frozen `model` wins.
    `endpoint`: a model behind an API is asked."""

    kind: Literal["builtin", "likelihood", "endpoint"] = "builtin"
    endpoint: EndpointSpec | None = None
    model: str = "builtin"
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
