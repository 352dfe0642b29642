"""Templates of every form: prompts, gold answers as a model would have sampled them, ends of turns, dates."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chat_forms import CHATML, EOS, FORMS, TOKENS, Form, make_model, with_ends
from omni_thinker.baselines.sft import gold_batch, gold_loss
from omni_thinker.errors import UserError
from omni_thinker.judging.base import NoJudge, Verdict
from omni_thinker.models.chat import ChatFormat, dates, load_chat
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import OptimParams, TrainGroup
from omni_thinker.recipe import ModelSpec, RewardSpec, RlSpec, TaskSpec, builtin_recipe, load_recipe, parse_recipe
from omni_thinker.rewards import make_reward, score_texts
from omni_thinker.rl.loop import Learner, StepResult
from omni_thinker.rl.losses import make_loss
from omni_thinker.studies.study import run_study
from omni_thinker.tasks.registry import make_pools, make_tasks
from omni_thinker.types import Chat, Problem, SampleRequest, SamplingParams, Turn

DAY = "2025-03-09"
MakeSpec = Callable[..., ModelSpec]


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms") / "model"
    make_model(folder)
    return folder


@pytest.fixture
def spec_of(with_tokens: Path, tmp_path: Path) -> MakeSpec:
    """The recipe's table for a form, with its template in a file."""

    def make(form: Form, **keys: Any) -> ModelSpec:
        folder = with_tokens
        if form.ends:
            folder = shutil.copytree(with_tokens, tmp_path / "model", dirs_exist_ok=True)
            with_ends(folder, form.ends)
        (tmp_path / "form.jinja").write_text(form.template, "utf-8")
        keys = {"template_options": form.options, "date": DAY, **keys}
        return ModelSpec(name=str(folder), chat_template=str(tmp_path / "form.jinja"), dtype="float32", **keys)

    return make


def chat_of(template: str, tokenizer: Any, **keys: Any) -> ChatFormat:
    tokenizer.chat_template = template
    return ChatFormat(tokenizer, where="here", **keys)


def decoded(chat: ChatFormat, ids: Sequence[int]) -> str:
    return str(chat.tokenizer.decode(list(ids)))


@pytest.fixture
def tokenizer(with_tokens: Path) -> Any:
    return load_chat(ModelSpec(name=str(with_tokens))).tokenizer


@pytest.mark.parametrize("name", FORMS)
def test_facts_and_target_of_each_form_are_those_of_its_template(spec_of: MakeSpec, name: str) -> None:
    form = FORMS[name]
    chat = load_chat(spec_of(form))
    facts, tokenizer = chat.facts, cast("Any", chat.tokenizer)
    end = form.end[-1:] if form.stop_text is None else ()
    assert tokenizer.decode(facts.turn_end) == "".join(form.end)
    assert facts.stop_ids == tuple(sorted({*tokenizer.convert_tokens_to_ids([EOS, *form.ends, *end])}))
    assert facts.stop_text == form.stop_text
    assert (facts.system, facts.prefix_holds, facts.prints_date) == (form.system, form.prefix, form.date)
    assert facts.bos == form.bos
    target = chat.target_ids("Hi", "x")
    assert tokenizer.decode(target) == form.target
    assert target[-len(facts.turn_end) :] == facts.turn_end


@pytest.mark.parametrize("name", FORMS)
def test_prompt_is_what_transformers_encodes_so_its_first_token_is_there_once(spec_of: MakeSpec, name: str) -> None:
    form = FORMS[name]
    chat = load_chat(spec_of(form))
    ids = chat.prompt_ids("Hi")
    if not form.date and form.system != "own":
        turns: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Hi"}] if form.in_parts else "Hi"}]
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False, **form.options}
        assert ids == chat.tokenizer.apply_chat_template(turns, **options)
    assert ids.count(chat.tokenizer.bos_token_id) == (form.bos == "template")


@pytest.mark.parametrize("name", FORMS)
def test_conversation_is_written_turn_by_turn(spec_of: MakeSpec, name: str) -> None:
    chat = load_chat(spec_of(FORMS[name]))
    earlier = (Turn("user", "first question"), Turn("assistant", "first answer"))
    text = chat.prompt_text(Chat("then?", "Be kind.", earlier))
    places = [text.find(words) for words in ("Be kind.", "first question", "first answer", "then?")]
    assert -1 not in places
    assert places == sorted(places)
    assert decoded(chat, chat.target_ids(Chat("then?", "Be kind.", earlier), "x")) == FORMS[name].target


@pytest.mark.parametrize(
    "name", [name if n in (1, 4, 6) else pytest.param(name, marks=pytest.mark.slow) for n, name in enumerate(FORMS)]
)
def test_form_is_learned_sampled_trained_and_exported_token_by_token(
    spec_of: MakeSpec, tmp_path: Path, name: str
) -> None:
    """After a warm-up on one answer the model samples the tokens that it was taught, the real end of the turn last."""
    policy = TorchPolicy(spec_of(FORMS[name]))
    problem = Problem("1", "t", "Name a city.", "Paris is right.")
    # Without thoughts: a model that thinks is asked behind an empty block, and so taught.
    [group] = gold_batch(policy, [problem], {"t": "off"})
    taught = group.samples[0].tokens
    for _ in range(40):
        policy.forward_backward([group], gold_loss)
        policy.optim_step(OptimParams(5e-3))
    request = SampleRequest(policy.ask(problem.chat, "off")[0], 64, 1)
    [answered] = policy.sample([request], SamplingParams(1, 0.0))
    sample = answered.samples[0]
    assert (sample.tokens, sample.stop) == (taught, "stop")
    assert policy.encode_answer("x")[-len(policy.chat.facts.turn_end) :] == policy.chat.facts.turn_end

    [drawn] = policy.sample([SampleRequest(request.prompt, 24, 3)], SamplingParams(4, 1.5))
    train = TrainGroup("t", drawn.prompt, drawn.samples, (1.0, -1.0, 0.5, -0.5), (0.01,) * 4)
    sampled = torch.tensor([logprob for one in drawn.samples for logprob in one.logprobs])
    assert float((policy.logprobs([train], temperature=1.5) - sampled).abs().max()) < 1e-4
    report = policy.forward_backward([train], make_loss(RlSpec()), temperature=1.5)
    assert policy.optim_step(OptimParams(1e-4)).applied
    assert report.stats["t"].tokens == len(sampled)

    policy.export(tmp_path / "out")
    again = load_chat(policy.spec.model_copy(update={"name": str(tmp_path / "out"), "chat_template": ""}))
    assert again.facts == policy.chat.facts
    assert again.target_ids("Hi", "x") == policy.chat.target_ids("Hi", "x")


# -- the date -----------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.dates(datetime.date(1971, 1, 1)), st.sampled_from(["%Y-%m-%d", "%d %b %Y", "%-d. %B %y", "%A, %j", "%H:%M"]))
def test_date_in_a_template_is_that_of_strftime(day: datetime.date, form: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, "x")), eos_token="x")
    asked = f"{{{{ strftime_now({form!r}) }}}}"
    template = "  {% if 1 %}{{ messages[0].content }}{% endif %} " + asked + "\n  {% if 1 %}.{% endif %}"
    expected = f"Hi {day.strftime(form)}\n."
    assert chat_of(template, tokenizer, day=day.isoformat()).prompt_text("Hi") == expected


def on_day(monkeypatch: pytest.MonkeyPatch, day: datetime.date) -> None:
    """Let it be this day."""

    class Faked(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:  # type: ignore[override]
            return day

    monkeypatch.setattr(dates, "date", Faked)


def test_prompt_without_a_date_of_its_own_has_todays(
    with_tokens: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = FORMS["the date, asked for in a macro"].template
    on_day(monkeypatch, datetime.date(1999, 12, 31))
    assert chat_of(template, tokenizer).prompt_text("Hi").startswith("1999-12-31, a Friday\n")
    named = FORMS["headers, and the date in a variable"].template
    chat = chat_of(named, tokenizer, options={"date_string": "some day"})
    assert "Today: some day" in chat.prompt_text("Hi")
    assert not chat.facts.prints_date


def traces(out: Path) -> tuple[Any, ...]:
    """What a study leaves that doesn't depend on time."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [{key: value for key, value in row["metrics"].items() if "seconds" not in key} for row in rows]
    weights = {str(path.relative_to(out)): path.read_bytes() for path in (out / "models").rglob("*.safetensors")}
    return losses, weights, (out / "samples.jsonl").read_text("utf-8"), (out / "scores.json").read_text("utf-8")


def test_study_resumed_on_another_day_ends_as_if_it_were_the_first(
    with_tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "form.jinja").write_text(FORMS["the date, asked for in a macro"].template, "utf-8")
    recipe = parse_recipe(
        {
            "model": {"name": str(with_tokens), "chat_template": str(tmp_path / "form.jinja"), "dtype": "float32"},
            "tasks": {"math": {"source": "builtin:math", "train": 16, "validation": 4, "test": 4, "max_tokens": 8}},
            "warmup": {"steps": 2, "batch": 4, "check_problems": 2},
            "rl": {"group_size": 2, "problems_per_step": 2, "refill_rounds": 0},
            "study": {"steps": 2, "arms": ["start", "joint"], "checkpoint_steps": 1, "bootstrap": 50},
        },
        "test",
    )
    days = [datetime.date(2025, 12, 31), datetime.date(2026, 1, 1)]
    for day in days:
        on_day(monkeypatch, day)
        run_study(recipe, tmp_path / f"{day}")
    on_day(monkeypatch, days[0])
    out, step = tmp_path / "stopped", Learner.step

    def stop_at_the_second(learner: Learner, quotas: Any, number: int, rate: float | None) -> StepResult:
        if number:
            raise KeyboardInterrupt
        return step(learner, quotas, number, rate)

    monkeypatch.setattr(Learner, "step", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_study(recipe, out)
    monkeypatch.setattr(Learner, "step", step)
    on_day(monkeypatch, days[1])
    run_study(recipe, out, resume=True)
    assert load_recipe(out / "recipe.toml").model.date == "2025-12-31"
    assert traces(out) == traces(tmp_path / "2025-12-31")
    assert traces(out)[1] != traces(tmp_path / "2026-01-01")[1], "the date must matter for this to say anything"
    with pytest.raises(UserError, match=r"model\.date was '2025-12-31', is '2026-01-01'"):
        run_study(load_recipe(out / "recipe.toml", ["model.date=2026-01-01"]), out, resume=True)
    (tmp_path / "form.jinja").write_text(FORMS["the plain form"].template, "utf-8")
    with pytest.raises(UserError, match=r"model\.chat_template: has changed since the run began: form\.jinja"):
        run_study(recipe, out, resume=True)


@pytest.mark.parametrize("date", ['"2026-2-1"', '"20260201"', '"2026-02-30"', "2026-02-01T00:00:00", "3"])
def test_date_that_is_none_is_refused(date: str) -> None:
    assert builtin_recipe(["model.date=2026-02-01"]).model.date == "2026-02-01"
    with pytest.raises(UserError, match=r"model\.date"):
        builtin_recipe([f"model.date={date}"])


# -- system words -------------------------------------------------------------------------------------------

NAMELESS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
INJECTS = "{% if messages[0]['role'] != 'system' %}[system]You are Bot{% endif %}" + NAMELESS
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + NAMELESS
DROPS = NAMELESS.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")


@pytest.mark.parametrize(
    ("template", "system", "expected"),
    [
        (NAMELESS, "Be kind.", "[system]Be kind.[user]Hi[assistant]"),
        (NAMELESS, "", "[user]Hi[assistant]"),
        (INJECTS, "Be kind.", "[system]Be kind.[user]Hi[assistant]"),
        (INJECTS, "", "[system][user]Hi[assistant]"),
        (REFUSES, "Be kind.", "[user]Be kind.\n\nHi[assistant]"),
        (REFUSES, "", "[user]Hi[assistant]"),
        (DROPS, "Be kind.", "[user]Be kind.\n\nHi[assistant]"),
        ("[{{ messages[0].content }}]", "Be kind.", "[Be kind.\n\nHi]"),
        ("[{{ messages[0].content }}]", "", "[Hi]"),
    ],
)
def test_chat_prompt_contains_the_given_system_text_only(
    tokenizer: Any, template: str, system: str, expected: str
) -> None:
    chat = chat_of(template, tokenizer, system=system)
    assert tokenizer.decode(chat.prompt_ids("Hi")) == expected
    other = chat_of(template, tokenizer, system="of the model")
    assert other.prompt_text(Chat("Hi", system)) == expected


# -- tokens at the seam -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("template", ["{{ c }}[/A]", "{{ c }}[/A] ", "{{ c }} so: ", "{{ c }}\n"])
def test_answer_follows_the_prompt_without_a_space_of_the_tokenizers_own(scheme: str, template: str) -> None:
    """Tokenizers of the sentencepiece kind put a space before a text, which a sampled answer doesn't have."""
    letters = [*"▁abcdefghijklmnopqrstuvwxyzP:\n.", "▁P", "P▁"]
    vocabulary = {token: n for n, token in enumerate(["<unk>", "</s>", "[/A]", *letters])}
    core = Tokenizer(models.BPE(vocabulary, [("▁", "P")], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="never")
    core.add_special_tokens(["</s>", "[/A]"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    head = template.replace("{{ c }}", "{{ messages[0].content }}")
    chat = chat_of(
        head + "{% if messages | length > 1 %}{{ messages[1].content }}{{ eos_token }}{% endif %}", tokenizer
    )
    for answer in ("Pa", " Pa", "\nP. P", ""):
        target = chat.target_ids("hi", answer)
        whole = tokenizer.encode(chat.prompt_text("hi") + answer + "</s>", add_special_tokens=False)
        assert tokenizer.decode([*chat.prompt_ids("hi"), *target]) == tokenizer.decode(whole)
        assert target[-1:] == chat.facts.turn_end


@pytest.mark.parametrize("answer", ["  x ", "x\n\n", "\n", "", "a [END] b", "\n\nx", "12 3", "    return 1", "é\u2028"])
@pytest.mark.parametrize("name", ["the plain form", "nothing ends a turn", "opens a thought", "a text ends a turn"])
def test_answers_that_the_template_leaves_alone_stay_as_they_are(spec_of: MakeSpec, name: str, answer: str) -> None:
    form = FORMS[name]
    chat = load_chat(spec_of(form))
    assert decoded(chat, chat.target_ids("Hi", answer)) == form.target.replace("x", answer, 1)


# -- what is refused ----------------------------------------------------------------------------------------

LATER = "{% if messages | length > 1 %}"
REFUSED = {
    "no template": ("", {}, r"no chat template; add chat_template\.jinja.*model\.chat_template"),
    "not Jinja": ("{% for %}", {}, r"its chat template fails: TemplateSyntaxError: .*\(line 1\)$"),
    "calls what it may not": (
        "{{ messages.append(1) }}{{ messages[0].content }}", {}, r"fails: SecurityError: [^;]*$"
    ),
    "needs an argument": ("{{ persona.name }}", {}, r"'persona' is undefined; .* model\.template_options"),
    "deaf": ("{{ messages | length }}", {}, "its chat template leaves out what the user says"),
    "needs tools": ("{{ tools | length }}", {}, r"fails: TypeError.*model\.template_options"),
    "unknown option": (
        CHATML + "{{ enable_thinking }}", {"enable_thinkng": True},
        r"model\.template_options\.enable_thinkng: the chat template has no such .*; did you mean 'enable_thinking'",
    ),
    "half a character": ("{{ '\\ud83d' }}" + CHATML, {}, "fails: it gave half a character"),
    "another text each time": ("{{ range(9) | random }}" + CHATML, {}, "writes one chat in several ways"),
    "option of the call": (CHATML, {"tokenize": True}, r"model\.template_options\.tokenize: isn't a variable"),
}  # fmt: skip
UNWRITTEN = {
    "never writes answers": (
        CHATML.replace("{{ m.content }}", "{{ m.content if m.role == 'user' }}"), "x", "leaves out the answer 'x'"
    ),
    "hides answers from prompts that it changes": (
        LATER + "other{% else %}" + CHATML + "{% endif %}", "x", "doesn't write what the assistant says"
    ),
    "cuts answers at a mark": (
        CHATML.replace("{{ m.content }}", "{{ m.content.split('#') | last }}"), "x#", "leaves out the answer 'x#'"
    ),
    "an end within the answer": (CHATML, "so <|im_end|> there", "holds '<|im_end|>', where answers end"),
    "ends long answers in another way": (
        CHATML + LATER + "{% if messages[1].content | length > 20 %}!{% endif %}{% endif %}", "x" * 30, "unlike others"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_template_that_cannot_be_used_is_refused_in_one_line(tokenizer: Any, name: str) -> None:
    template, options, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        chat_of(template, tokenizer, options=options)
    assert "\n" not in str(caught.value)
    assert caught.value.file == "here" or caught.value.key


@pytest.mark.parametrize("name", UNWRITTEN)
def test_answer_that_the_template_does_not_write_is_refused(tokenizer: Any, name: str) -> None:
    template, answer, message = UNWRITTEN[name]
    with pytest.raises(UserError, match=message):
        chat_of(template, tokenizer).target_ids("Hi", answer)


@pytest.mark.parametrize("body", [None, b"", b" \n", b"\xff\xfe\x00"], ids=["none", "empty", "blank", "not UTF-8"])
def test_bad_template_file_is_named(with_tokens: Path, tmp_path: Path, body: bytes | None) -> None:
    if body is not None:
        (tmp_path / "mine.jinja").write_bytes(body)
    with pytest.raises(UserError, match=r"mine\.jinja: model\.chat_template: (is empty|can't be read)"):
        load_chat(ModelSpec(name=str(with_tokens), chat_template=str(tmp_path / "mine.jinja")))


def test_folder_without_a_template_takes_one_from_a_file(with_tokens: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(with_tokens, tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        load_chat(ModelSpec(name=str(folder)))
    (tmp_path / "mine.jinja").write_text(CHATML, "utf-8")
    chat = load_chat(ModelSpec(name=str(folder), chat_template=str(tmp_path / "mine.jinja")))
    assert chat.prompt_text("Hi") == "<|im_start|>user\nHi<|im_end|>\n"


def test_special_tokens_of_the_forms_are_one_token_each(tokenizer: Any) -> None:
    assert all(len(tokenizer.encode(token, add_special_tokens=False)) == 1 for token in TOKENS)


# -- whose words --------------------------------------------------------------------------------------------


class Listening(NoJudge):
    """Remembers what it was asked about."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    async def compare(self, prompt: str, responses: Sequence[str], reference: str) -> list[Verdict]:
        self.prompts.append(prompt)
        return [Verdict("win") for _ in responses]


def test_system_text_is_the_rows_then_the_tasks_then_the_models_and_judges_see_the_first_two(
    tokenizer: Any, tmp_path: Path
) -> None:
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    rows = [
        {
            "messages": [
                *([{"role": "system", "content": "row"}] if n % 2 else []),
                *said,
                {**said[0], "content": f"{n}?"},
            ]
        }
        for n in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    specs = {"t": TaskSpec(source="jsonl", files=(str(tmp_path / "rows.jsonl"),), system="task")}
    pools = make_pools(make_tasks(specs), {}, specs)
    chat = chat_of(CHATML, tokenizer, system="model")
    for problem in (problem for split in pools.values() for problem in split["t"]):
        system = "row" if int(problem.prompt[:-1]) % 2 else "task"
        assert chat.prompt_text(problem.chat).startswith(f"<|im_start|>system\n{system}<|im_end|>\n")
        judge = Listening()
        reward = make_reward(RewardSpec(gate=(), sum={"preference": 1.0}), judge=judge)
        asked = dataclasses.replace(problem, data={"reference": "r"})
        assert asyncio.run(score_texts(reward, asked, ["x"]))[0].value == 1.0
        assert judge.prompts == [f"System: {system}\n\nUser: Hi\n\nAssistant: Hello.\n\nUser: {problem.prompt}"]
    assert chat.prompt_text("Hi").startswith("<|im_start|>system\nmodel<|im_end|>\n")
