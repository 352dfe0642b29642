"""Check sampling and training on every architecture that the installed transformers maps to a causal LM.

    .venv/bin/python scripts/architecture_sweep.py --results sweep.jsonl --table docs/models.md

Each model is made tiny and random, twice: with transformers' own initialisation and with sharp weights. It is saved,
loaded as a study loads it, proves itself, samples, and is trained on what it sampled. The log-probs of both are then
compared with the plain forward pass of a model that transformers loads from the same folder, on other tokens and
lengths than the proof's. Models run in child processes with limits of time and memory. Results that are in the file
already are kept, so a sweep that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from omni_thinker.errors import UserError, printable
from omni_thinker.models.quiet import quiet
from omni_thinker.models.tiny import tiny_in_cache
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import LossTerms, TokenBatch, TrainGroup
from omni_thinker.recipe import ModelSpec
from omni_thinker.types import Group, SampleRequest, SamplingParams
from tiny_models import families, tiny_model

BOUND = 1e-4
"""Nats, in fp32."""
LENGTHS = ((16, 10), (26, 14))
"""Tokens of each prompt and of its answers: 26 and 40 in all."""
GROUP = 4
SECONDS, BYTES = 90.0, 12 * 2**30
_PATIENCE = 20
"""How many times longer by the clock, on a busy machine."""
BEGIN, END = "<!-- begin: architectures -->", "<!-- end: architectures -->"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def check(family: str, *, spread: bool, checkpointed: bool = False) -> dict[str, Any]:
    """What happens to one model: `refused` with the line, or the `paths` and the worst differences in nats of sampling
    and training; `unbuilt` where transformers itself can't make, save or run it."""
    row: dict[str, Any] = {"family": family, "spread": spread}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        try:
            with quiet():
                tiny_model(family, spread=spread).save_pretrained(folder)
        except Exception as exc:
            return row | {"unbuilt": _short(exc)}
        for name in _TOKENIZER:
            if (file := tiny_in_cache() / name).is_file():
                shutil.copy(file, folder)
        try:
            policy = TorchPolicy(
                ModelSpec(name=str(folder), dtype="float32", device="cpu", activation_checkpointing=checkpointed)
            )
        except UserError as exc:
            return row | {"refused": str(exc).replace(str(folder), "FOLDER")}
        with quiet():
            row |= _compared(policy, folder)
    return row


def _compared(policy: TorchPolicy, folder: Path) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(11)
    requests = [
        SampleRequest(torch.randint(3, 400, (prompt,), generator=generator).tolist(), answer, 5 + n)
        for n, (prompt, answer) in enumerate(LENGTHS)
    ]
    groups = policy.sample(requests, SamplingParams(GROUP))
    paths = policy._proven.paths(sum(LENGTHS[-1]))
    truth = _reference(folder, groups)
    sampled = torch.tensor([x for group in groups for sample in group.samples for x in sample.logprobs])
    trained = _trained(policy, groups)
    return {
        "layout": paths.layout,
        "decoder": paths.decoder,
        "notes": list(paths.notes),
        "sampling": _worst(sampled, truth),
        "training": _worst(trained, truth),
    }


def _worst(found: torch.Tensor, truth: torch.Tensor) -> float:
    difference = float((found - truth).abs().max())
    return difference if difference == difference else float("inf")


def _trained(policy: TorchPolicy, groups: Sequence[Group]) -> torch.Tensor:
    """Log-probs as a loss sees them, in the order of `groups`."""
    seen: dict[tuple[int, ...], torch.Tensor] = {}
    for group in groups:  # one at a time, so that their order is known

        def loss(batch: TokenBatch, prompt: tuple[int, ...] = group.prompt) -> LossTerms:
            seen[prompt] = batch.logprobs_N.detach()
            return LossTerms(-batch.logprobs_N.mean(), torch.zeros_like(batch.logprobs_N, dtype=torch.bool))

        ones = (1.0,) * len(group.samples)
        policy.forward_backward([TrainGroup("t", group.prompt, group.samples, ones, ones)], loss)
    return torch.cat([seen[group.prompt] for group in groups])


@torch.no_grad()
def _reference(folder: Path, groups: Sequence[Group]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for group in groups:
        for sample in group.samples:
            row = torch.tensor([[*group.prompt, *sample.tokens]])
            logprobs = model(input_ids=row).logits[0].float().log_softmax(-1)
            answer = row[0, len(group.prompt) :]
            found.append(logprobs[len(group.prompt) - 1 : -1].gather(-1, answer[:, None])[:, 0])
    return torch.cat(found)


def _short(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return printable(f"{type(exc).__name__}: {lines[0][:160]}" if lines else type(exc).__name__)


# -- many models ------------------------------------------------------------------------------------------------------


def child(names: Sequence[str], seconds: float) -> None:
    """Check these families, a line of JSON for each check, to standard output; each for so many seconds at most."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for name in names:
        for spread in (False, True):
            row: dict[str, Any] = {"family": name, "spread": spread}
            began = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, seconds)  # of the processor, then the process is ended
            try:
                row = check(name, spread=spread, checkpointed=spread)
            except Exception as exc:  # what must not happen: it is told as it is
                row |= {"crashed": _short(exc)}
            print(json.dumps(row | {"seconds": round(time.process_time() - began, 2)}), flush=True)


def sweep(names: Sequence[str], results: Path, *, seconds: float = SECONDS) -> list[dict[str, Any]]:
    """All rows of these families: those in the file, and new ones, which are added to it."""
    rows = _read(results)
    done = {(row["family"], row["spread"]) for row in rows}
    waiting = [name for name in names if not {(name, False), (name, True)} <= done]
    with results.open("a", encoding="utf-8") as file:
        while waiting:
            left = list(waiting)
            for row in _run(waiting, seconds):
                file.write(json.dumps(row) + "\n")
                file.flush()
                rows.append(row)
                if row["spread"]:
                    left.remove(row["family"])
            waiting = left
    return [row for row in rows if row["family"] in set(names)]


def _run(names: Sequence[str], seconds: float) -> Iterator[dict[str, Any]]:
    """Rows of one child, which may end early; the family that it ended at gets a row, too."""
    command = [sys.executable, __file__, "--seconds", str(seconds), "--child", *names]
    current, spread = names[0], False
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        order = list(names)
        while True:
            ready, _, _ = select.select([process.stdout], [], [], _PATIENCE * seconds)
            line = process.stdout.readline() if ready else ""
            if line:
                row = json.loads(line)
                yield row
                spread = not row["spread"]
                current = row["family"] if spread else next(iter(order[order.index(row["family"]) + 1 :]), "")
                continue
            if current:
                process.kill()
                process.wait()
                slow = not ready or process.returncode == -signal.SIGPROF
                why = f"more than {seconds:.0f} s" if slow else f"exit code {process.returncode}"
                yield from ({"family": current, "spread": which, "crashed": why} for which in {spread, True})
            return


def _read(results: Path) -> list[dict[str, Any]]:
    if not results.is_file():
        return []
    return [json.loads(line) for line in results.read_text("utf-8").splitlines() if line.strip()]


# -- the table --------------------------------------------------------------------------------------------------------


def wrong(row: dict[str, Any]) -> bool:
    """Whether a row says what must not be: a crash, or a difference without a word."""
    return "crashed" in row or max(row.get("sampling", 0.0), row.get("training", 0.0)) > BOUND


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line of Markdown for each family, the worse of its two checks."""
    import transformers

    lines = [
        f"Made with transformers {transformers.__version__} and torch {torch.__version__.split('+')[0]}.",
        "",
        "| model type | training | sampling | worst difference (nats) |",
        "| --- | --- | --- | --- |",
    ]
    by_family: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_family.setdefault(row["family"], []).append(row)
    for family, own in sorted(by_family.items()):
        lines.append(f"| `{family}` | {_cells(own)} |".replace("  |", " |"))
    return "\n".join(lines)


def _cells(rows: Sequence[dict[str, Any]]) -> str:
    said = [
        f"{word}: {row[key]}"
        for key, word in (("crashed", "CRASHED"), ("refused", "refused"), ("unbuilt", "not made"))
        for row in rows
        if key in row
    ]
    ran = [row for row in rows if "layout" in row]
    if said and not ran:
        return f"{_cell(said[0])} | | "
    layouts, decoders = (" or ".join(dict.fromkeys(row[key] for row in ran)) for key in ("layout", "decoder"))
    worst = max(max(row["sampling"], row["training"]) for row in ran)
    return f"{layouts} | {decoders} | {worst:.0e}" + (f"; sharp weights {_cell(said[0])}" if said else "")


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("model.name: this model can't be trained: ", "")


def write_table(page: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Put the table between the markers of a page."""
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--results", type=Path, default=Path("sweep.jsonl"))
    parser.add_argument("--only", default="", help="model types, separated by commas")
    parser.add_argument("--table", type=Path, help="a page of Markdown with markers, whose table is written anew")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for one check")
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child is not None:
        child(chosen.child, chosen.seconds)
        return
    names = chosen.only.split(",") if chosen.only else families()
    rows = sweep(names, chosen.results, seconds=chosen.seconds)
    for row in rows:
        if wrong(row):
            print(json.dumps(row))
    counts = [sum(key in row for row in rows) for key in ("layout", "refused", "unbuilt", "crashed")]
    print("{} ran, {} refused, {} not made, {} crashed, {} wrong".format(*counts, sum(map(wrong, rows))))
    if chosen.table:
        write_table(chosen.table, rows)


if __name__ == "__main__":
    main()
