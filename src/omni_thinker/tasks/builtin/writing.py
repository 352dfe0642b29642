"""`builtin:writing`: one to three sentences of a stated form, about a topic, under constraints that can be checked."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omni_thinker.recipe import RewardSpec
from omni_thinker.tasks.pool import Item, PooledTask, level

_WORDS: dict[str, Any] = json.loads(Path(__file__).with_name("writing.json").read_text("utf-8"))
CLAUSES: Mapping[str, Mapping[str, Sequence[str]]] = _WORDS["clauses"]
"""What there is to say about each topic: main clauses in the present tense that hold their word as it stands, so that
they fit every frame."""
FORMS: Mapping[str, Sequence[str]] = _WORDS["forms"]
"""Frames for the first clause, by the form of the text."""
ASKED: Mapping[str, str] = _WORDS["asked"]
"""How a prompt names each form."""
FOLLOW: Sequence[str] = _WORDS["follow"]
"""Frames for the clauses after the first."""
JOINED: Sequence[str] = _WORDS["joined"]
"""Ways to join two clauses to one."""
NUMBER_WORDS = ("no", "one", "two", "three")


class WritingTask(PooledTask):
    """Short texts: one word to use (level 0), a length limit too (1), two sentences (2), two words and one to avoid
    (3), three sentences and three words (5 and up, with tighter limits).

    data["constraints"]: `include` and `avoid` (whole words), `sentences` (exact), `max_words`. The gold answer keeps
    them all; what reads better is a judge's business. Disjoint across splits: the topic with the words to use."""

    kind = "writing"
    summary = "short texts of a stated form under checkable constraints, compared by a judge"
    default_reward = RewardSpec(gate=("finished", "constraints"), sum={"preference": 1.0})
    default_difficulty = 1.0
    default_max_tokens = 64
    per_key = 12
    patience = 500  # few topics: keys run out soon, and a smaller pool is cheaper than a longer search

    def generate(self, rng: random.Random, difficulty: float) -> Item:
        lvl = level(rng, difficulty)
        topic, form = rng.choice(sorted(CLAUSES)), rng.choice(sorted(FORMS))
        sentences = 1 if lvl < 2 else rng.randint(1, 2) if lvl < 5 else rng.randint(2, 3)
        words = rng.sample(sorted(CLAUSES[topic]), 1 if lvl < 3 else 2 if lvl < 5 else 3)
        gold = _compose(rng, topic, form, words, sentences)
        constraints: dict[str, Any] = {"include": words, "sentences": sentences}
        if lvl >= 1:
            slack = rng.randint(2, max(2, 8 - lvl))
            constraints["max_words"] = len(gold.split()) + slack
        if lvl >= 3:
            unused = [word for word in sorted(CLAUSES[topic]) if word not in gold.lower()]
            constraints["avoid"] = [rng.choice(unused)]
        key = f"{topic}: {' '.join(sorted(words))}"
        return Item(key, _prompt(topic, form, constraints), gold, {"constraints": constraints})


def _compose(rng: random.Random, topic: str, form: str, words: Sequence[str], sentences: int) -> str:
    """A text of exactly so many sentences that holds all the words."""
    spare = [word for word in sorted(CLAUSES[topic]) if word not in words]
    about = [*words, *rng.sample(spare, max(0, sentences - len(words)))]
    clauses = [rng.choice(CLAUSES[topic][word]) for word in about]
    while len(clauses) > sentences:
        second, first = clauses.pop(), clauses.pop()
        clauses.append(rng.choice(JOINED).format(a=first, b=second))
    frames = [rng.choice(FORMS[form]), *rng.sample(FOLLOW, sentences - 1)]
    return " ".join(
        frame.format(c=clause, C=clause[0].upper() + clause[1:]) for frame, clause in zip(frames, clauses, strict=True)
    )


def _prompt(topic: str, form: str, constraints: dict[str, Any]) -> str:
    sentences = constraints["sentences"]
    length = f"{NUMBER_WORDS[sentences]} sentence{'s' if sentences > 1 else ''}"
    request = f"Write {length} about {topic}." if form == "sentence" else f"Write {ASKED[form]} {topic}, in {length}."
    *first, last = [f'"{word}"' for word in constraints["include"]]
    use = f"Use the word {last}" if not first else f"Use the words {', '.join(first)} and {last}"
    if "avoid" in constraints:
        use += f', but not "{constraints["avoid"][0]}"'
    limit = f" At most {constraints['max_words']} words." if "max_words" in constraints else ""
    return f"{request} {use}.{limit}"
