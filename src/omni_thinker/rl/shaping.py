"""What training makes of scores: less for long answers, and their parts one by one."""

from dataclasses import replace

from omni_thinker.recipe import RlSpec
from omni_thinker.rl.batch import ScoredGroup


def shaped(scored: ScoredGroup, spec: RlSpec, max_tokens: int, *, of_answer: bool = False) -> ScoredGroup:
    """The group as training takes it: with its parts apart where the advantage is GDPO's, and with DAPO's soft overlong
    punishment (arXiv 2503.14476). That is nothing up to `overlong_buffer` tokens before the limit, from there on in
    proportion, and `overlong_penalty` at the limit. `of_answer`: tokens after thoughts count alone, as `max_tokens`
    does where thoughts have a budget."""
    scored = replace(scored, apart=True) if spec.estimator == "gdpo" else scored
    buffer = min(spec.overlong_buffer, max_tokens)
    if not buffer:
        return scored
    lengths = [sample.answer_length if of_answer else sample.longest_answer for sample in scored.group.samples]
    over = (min(1.0, max(0.0, (length - (max_tokens - buffer)) / buffer)) for length in lengths)
    return replace(scored, penalties=tuple(spec.overlong_penalty * share for share in over))
