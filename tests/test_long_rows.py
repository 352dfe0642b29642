"""Rows far longer than any cache: memory grows with the row, not with its square."""

from __future__ import annotations

import subprocess
import sys

import pytest

PASS = """
import resource, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from omni_thinker.engine.logprobs import answer_logprobs
from omni_thinker.protocol import TrainGroup
from omni_thinker.types import Sample

def train(length):
    tokens = tuple(n % 500 for n in range(length // 2))
    samples = (Sample(tokens, (0.0,) * len(tokens), "", "length"),) * 2
    group = TrainGroup("t", tuple(range(64)), samples, (1.0, 1.0), (1.0, 1.0))
    answer_logprobs(model, [group], temperature=1.0, layout=sys.argv[1]).logprobs_N.sum().backward()

shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
model = LlamaForCausalLM(LlamaConfig(vocab_size=512, max_position_embeddings=2**15, **shape)).to(torch.bfloat16)
train(256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
train(int(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def _growth(layout: str, length: int) -> int:
    """Kilobytes by which a pass over a row raises a process's peak."""
    command = [sys.executable, "-c", PASS, layout, str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["written-out", "packed"])
def test_memory_of_a_row_of_16k_tokens_is_four_times_that_of_4k(layout: str) -> None:
    shorter, longer = _growth(layout, 4_400), _growth(layout, 17_600)
    assert longer < 6 * shorter, "the square would be 16 times"
    assert longer < 400_000
