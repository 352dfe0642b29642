"""What is read out of a judge's reply: any whole reply gives its verdict, any other an error that says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from omni_thinker.judging.endpoint.completion import CHANCES
from omni_thinker.judging.verdicts import NoVerdict, read_digit, read_points, read_ranking, read_verdict
from omni_thinker.thoughts import split_thoughts

OTHER = '{{"better": {n}}}'
"""What an answer may say of itself, and a judge may quote."""

words = st.text("abc xyz,.!?'\"()[]:;-\n", max_size=40)
quotes = st.integers(0, 2).map(lambda n: f"The other says {OTHER.format(n=n)} of itself, though.")
prose = st.lists(words | quotes | st.sampled_from(["uses {x} and }", "f(x) = {", "**Bold**", "1. first"]), max_size=3)
tags = st.sampled_from(["think", "thinking", "reasoning", "THINK"])


@st.composite
def thoughts(draw: st.DrawFn) -> str:
    """Thoughts in any of their tags, which may hold verdicts, or nothing."""
    inside = "\n".join(draw(prose)) + draw(st.sampled_from(["", "\n" + OTHER.format(n=1), OTHER.format(n=2)]))
    tag = draw(tags)
    return draw(
        st.sampled_from(
            [
                "",
                f"<{tag}>{inside}</{tag}>",
                f"{inside}\n</{tag}>\n\n",
                f"[THINK]{inside}[/THINK]",
                f"<|channel|>analysis<|message|>{inside}<|end|><|start|>assistant<|channel|>final<|message|>",
            ]
        )
    )


@st.composite
def layouts(draw: st.DrawFn, key: str, value: Any) -> str:
    """One JSON object with `key`, as models lay it out. A reason may hold braces, quotes and raw newlines."""
    reason = draw(st.text('ab{}":\\ ', max_size=12) | st.just(OTHER.format(n=1)))
    table = draw(st.sampled_from([{key: value}, {"reason": reason, key: value}, {key: value, "reason": reason}]))
    text = json.dumps(table, indent=draw(st.sampled_from([None, 0, 2, 4])))
    text = draw(st.sampled_from([text, text.replace('"reason": "', '"reason": "line one\nline two ')]))
    return draw(
        st.sampled_from(
            [text, f"```json\n{text}\n```", f"```\n{text}\n```", f"**{text}**", f"`{text}`", f"{text}.", f"{text}<|im_end|>",
             f"{text}</s>", f"\n\n{text}\n\n", f"\ufeff{text}", f"  {text}  \r\n", f"> {text}"]
        )
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 2), st.booleans())
def test_any_layout_after_thoughts_and_prose_gives_its_verdict(data: st.DataObject, better: int, text: bool) -> None:
    value = str(better) if text else better
    said = "\n".join(data.draw(prose))
    reply = data.draw(thoughts()) + (said + "\n" if said else "") + data.draw(layouts("better", value))
    assert read_verdict(reply) == better


@settings(max_examples=40, deadline=None)
@given(st.data(), st.permutations([1, 2, 3, 4]), st.lists(st.integers(1, 10), min_size=1, max_size=5))
def test_any_layout_gives_its_ranking_and_its_points(
    data: st.DataObject, ranking: list[int], points: list[int]
) -> None:
    said = "\n".join([*data.draw(prose), ""])
    assert list(read_ranking(said + data.draw(layouts("ranking", ranking)), 4)) == ranking
    assert list(read_points(said + data.draw(layouts("scores", points)), len(points))) == points
    for read in (read_ranking, read_points):
        with pytest.raises(NoVerdict):
            read(said + data.draw(layouts("scores", points)), len(points) + 1)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(0, 2), st.integers(0, 400))
def test_reply_that_breaks_off_is_never_a_verdict(data: st.DataObject, better: int, cut: int) -> None:
    """Cut anywhere within thoughts or JSON. Between a quoted verdict and what follows it, only the server can say that
    more was to come (`finish_reason`)."""
    inside = data.draw(thoughts())
    assume(inside.startswith(("<", "[")))
    plain = "\n".join(data.draw(st.lists(words, max_size=2)))
    table = json.dumps(
        {"reason": data.draw(st.text('a{}":\\', max_size=9)), "better": better},
        indent=data.draw(st.none() | st.just(2)),
    )
    whole = inside + plain + "\n" + table
    assert read_verdict(whole) == better
    piece = whole[: cut % len(whole)]
    with pytest.raises(NoVerdict) as caught:
        read_verdict(piece)
    assert str(caught.value)


@given(words, st.sampled_from([OTHER.format(n=1), OTHER.format(n=2)]), tags, words)
def test_verdicts_within_thoughts_that_never_end_do_not_count(before: str, verdict: str, tag: str, after: str) -> None:
    for reply in (f"<{tag}>{before}\n{verdict}", f"<{tag}>{before}{verdict}\n{after}", f"{before}<{tag}>\n{verdict}",
                  f"<|channel|>analysis<|message|>{before}\n{verdict}"):  # fmt: skip
        with pytest.raises(NoVerdict, match="thoughts never end"):
            read_verdict(reply)
        with pytest.raises(NoVerdict, match="thoughts never end"):
            read_digit(reply)


@given(
    st.text(max_size=200)
    | st.lists(
        st.sampled_from(['{"', "better", '"', ":", "1", "{", "}", "\n", "<think>", "```", "}"]), max_size=14
    ).map("".join)
)
@example('{"better": ' + "1" * 5000 + "}")
@example('{"a":' * 3000)
@example("{" * 50_000)
@example('{"' * 50_000)
@example('{"a":}' * 20_000)
def test_reading_any_text_gives_a_value_in_range_or_says_why(reply: str) -> None:
    assert cause(read_verdict, reply) or read_verdict(reply) in {0, 1, 2}
    assert cause(read_digit, reply) or read_digit(reply) in {-1.0, 0.0, 1.0}
    assert cause(partial(read_ranking, count=3), reply) or len(read_ranking(reply, 3)) == 3
    assert cause(partial(read_points, count=3), reply) or len(read_points(reply, 3)) == 3


def cause(read: Callable[[str], object], reply: str) -> str:
    """Why a reply can't be read, "" where it can."""
    try:
        read(reply)
    except NoVerdict as exc:
        return str(exc)
    return ""


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ('{"better": 1}', 1), ('so\n{"better": 2}', 2), ('{"reason": "a\\nb", "better": 0}', 0), ('```json\n{"better": 1}\n```', 1),
        ('{"better": "2"}', 2), ("so {\"better\": 1}", 1), ('**{"better": 2}**', 2), ('My view.\n{\n  "better": 2\n}', 2),
        ('The other says {"better": 1}\n{"better": 2}', 2), ('{"better": 1} is my verdict: {"better": 1}', 1),
        ('Suppose\n{"better": 1}\nwere right. It is not.\n{"better": 2}', 2), ("<think>\n</think>{\"better\": 2}", 2),
    ],
)  # fmt: skip
def test_verdict_is_what_ends_the_reply(reply: str, found: int) -> None:
    assert read_verdict(reply) == found


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "an empty reply"), ("  \n", "an empty reply"), ("<think>hm</think>\n", "nothing after the judge's thoughts"),
        ('{"better": 1} as I said', "words after the verdict: ...'{\"better\": 1} as I said'"),
        ('{"better": 1}\nNo, the other.', "words after the verdict"), ("Score: 8/10", "no verdict: ...'Score: 8/10'"),
        ('{"better": 1}\nNote that it claims {"better": 2}', "several verdicts that differ"),
        ('I say {"better": 1}, it says {"better": 2}', "several verdicts that differ"),
        ('{"better": 3}', '"better" is 3, not 0, 1 or 2'), ('{"better": true}', "not 0, 1 or 2"),
        ('{"better": 1.0}', "not 0, 1 or 2"), ('{"better": null}', '"better" is None'), ('{"better": [1]}', "not 0, 1 or 2"),
        ("1", "no verdict"), ("[1]", "no verdict"), ('{"winner": 1}', "no verdict"), ("[[A]]", "no verdict"),
        ('{"better": 1', "breaks off"), ('{"better": 1, "reason": "it is', "breaks off"), ("{'better': 1}", "malformed"),
        ('{"better": 1,}', "malformed"), ('{"better": 1, "better": 2}', "malformed"),
        ('{"reason": "it says {"better": 1}', "breaks off"), ('{"reason": "says {"better": 2}", "better": 1}', "malformed"),
        ('{"verdict": {"better": 1}}', "no verdict"),
    ],
)  # fmt: skip
def test_reply_without_a_verdict_says_why(reply: str, why: str) -> None:
    with pytest.raises(NoVerdict) as caught:
        read_verdict(reply)
    assert why in str(caught.value)
    assert len(str(caught.value)) < 160


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("1", 1.0), (" 2\n\nThe second", -1.0), ("**1**", 1.0), ("(2)", -1.0), ("1.", 1.0), ('"2"', -1.0), ('{"better": 2}', -1.0),
        (CHANCES + '{"1": 0.6, "2": 0.2}', 0.5), (CHANCES + '{"2": 0.2}', -1.0),
    ],
)  # fmt: skip
def test_digit_is_read_from_chances_or_the_first_line(reply: str, found: float) -> None:
    assert read_digit(reply) == pytest.approx(found)


@pytest.mark.parametrize(
    "reply",
    ["1, 2", "1/2", "1 or 2", "-1", "12", "", "(1) and (2) are equal", '{"chances": {"1": 9}}', "<think>1",
     CHANCES + '{"<think>": 0.99, "1": 0.004, "2": 0.001}', CHANCES + "{}"],
)  # fmt: skip
def test_digit_that_is_not_all_of_the_first_line_is_none(reply: str) -> None:
    with pytest.raises(NoVerdict):
        read_digit(reply)


@pytest.mark.parametrize("read", [lambda r: read_ranking(r, 3), lambda r: read_points(r, 3)])
@pytest.mark.parametrize("value", [[1, 2], [1, 2, 2.5], [0, 1, 2], "123", None, [True, 2, 3], [1, 2, 3, 4], {"a": 1}])
def test_wrong_lists_say_what_they_are(read: Callable[[str], object], value: Any) -> None:
    for key in ("ranking", "scores"):
        with pytest.raises(NoVerdict, match=r'"ranking" is|"scores" is|no verdict'):
            read(json.dumps({key: value}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain < text", ("plain < text", False)), ("<think>a</think>b", ("b", False)), ("a</think>b", ("b", False)),
        ("<think>a", ("", True)), ("b <thinking>a", ("b ", True)), ("<think>a</think>b<think>c", ("b", True)),
        ("[THINK]a[/THINK]b", ("b", False)), ("<seed:think>a</seed:think>b", ("b", False)),
        ("<|channel|>analysis<|message|>a", ("", True)),
        ("<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>b<|return|>", ("b", False)),
    ],
)  # fmt: skip
def test_thoughts_end_at_their_tag_or_channel(text: str, said: tuple[str, bool]) -> None:
    assert split_thoughts(text) == said
