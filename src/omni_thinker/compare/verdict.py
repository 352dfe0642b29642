"""The study's outcome in words: what was shown, what was not."""

from collections.abc import Mapping, Sequence

from omni_thinker.arms import ARMS, QUESTIONS, is_scheduled, rivals
from omni_thinker.runs.schema.result import Comparison


def verdict(comparisons: Sequence[Comparison], confidence: float, seeds: int) -> str:
    """Sentences on the macro average: first which arms beat joint training, then the questions a study is run for."""
    by_pair = {(c.a, c.b): c for c in comparisons if c.task == "macro"}
    sentences = []
    others = [arm for arm in dict.fromkeys(name for pair in by_pair for name in pair) if is_scheduled(arm)]
    for a, b in (*QUESTIONS, *((arm, "joint") for arm in others)):
        comparison = by_pair.get((a, b)) or _swapped(by_pair.get((b, a)))
        if comparison is not None:
            subject = ARMS[a].subject if a in ARMS else f"The arm {a}"
            sentences.append(_sentence(comparison, subject, ARMS[b].object, confidence))
    if not sentences:
        return "Nothing was compared with the start or with joint training." if by_pair else "Nothing was compared."
    if headline := _headline(by_pair):
        sentences.insert(0, headline)
    scope = "one seed: another training run may come out differently" if seeds == 1 else f"{seeds} seeds"
    many = len(rivals(sorted({name for pair in by_pair for name in pair})))
    if many > 1 and any("joint" in pair for pair in by_pair):
        scope += f"; intervals against joint training hold for all {many} arms at once"
    return " ".join(sentences) + f" (Macro average over tasks, test split, {scope}.)"


def _headline(by_pair: Mapping[tuple[str, str], Comparison]) -> str:
    """Which arms beat joint training; where none does, what could have been seen. Empty without joint training."""
    against = []
    for name in rivals(list(dict.fromkeys(name for pair in by_pair for name in pair))):
        comparison = by_pair.get((name, "joint")) or _swapped(by_pair.get(("joint", name)))
        if comparison is not None:
            against.append(comparison)
    if not against:
        return ""
    parts = []
    for side, words in ((1, "Shown to beat joint training"), (-1, "Shown to fall short of joint training")):
        shown = [c for c in against if c.shown and c.difference * side > 0]
        if shown:
            differences = ", ".join(f"{c.a} by {100 * abs(c.difference):.1f} points" for c in shown)
            parts.append(f"{words}: {differences}.")
    if parts:
        return " ".join(parts)
    most = max((c.detectable for c in against if c.detectable is not None), default=None)
    power = "" if most is None else f"; a difference of {100 * most:.1f} points would be shown nine times in ten"
    names = ", ".join(dict.fromkeys(arm for c in against for arm in (c.a, c.b) if arm != "joint"))
    subject = f"The arm {names} was not" if len(against) == 1 else f"None of the {len(against)} arms ({names}) was"
    return f"{subject} shown to differ from joint training at this budget{power}."


def _sentence(c: Comparison, subject: str, object_: str, confidence: float) -> str:
    interval = f"{100 * confidence:.4g} % interval {_points(c.low)} to {_points(c.high)} points"
    if not c.shown:
        return f"No difference shown between {subject[0].lower() + subject[1:]} and {object_} ({interval})."
    side = "above" if c.difference > 0 else "below"
    return f"{subject} ended {100 * abs(c.difference):.1f} points {side} {object_} ({interval})."


def _points(difference: float) -> str:
    """A difference with its sign; without one where it rounds to zero."""
    points = round(100 * difference, 1)
    return f"{points:+.1f}" if points else "0.0"


def _swapped(c: Comparison | None) -> Comparison | None:
    return None if c is None else c.swapped()
