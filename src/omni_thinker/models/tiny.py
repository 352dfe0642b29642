"""The model `tiny`: random weights and a real tokenizer, made offline in a second. For tests and dry runs."""

import itertools
import json
from pathlib import Path

from omni_thinker.models.home import MANIFEST, home, publish_folder

VOCABULARY = 512
_RECIPE = 1
_SEED = 20250714
_CONTEXT = 2048
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_PAD, _BOS, _EOS = _SPECIAL

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_TEXT = """\
What is the capital of France? The capital of France is Paris. Answer with the name only.
How much is twelve plus thirty? Twelve plus thirty is forty two. Answer with a number.
Write a Python function that returns the sum of two numbers. def add(a, b): return a + b
Write a Python function that returns x times three. def triple(x): return x * 3
Which of the options is right? The answer is the second option. Answer briefly.
Continue the story with two sentences. Once upon a time there was a little house near the sea.
The value of the expression is seven. Therefore the answer is seven.
Read the question, think about it, then give the answer between the tags.
Training on one task changes what the model can do on the others, sometimes for better and sometimes for worse.
A judge compares the response with a reference and says which of them is clearer, shorter and more helpful.
"""


def tiny_folder() -> Path:
    """Where the tiny model lies or will lie in the cache."""
    return home() / "models" / f"tiny-{_RECIPE}"


def tiny_in_cache() -> Path:
    """The tiny model's folder, made where it is missing. Raises UserError when the cache can't be written."""
    return publish_folder(tiny_folder(), make_tiny, lambda folder: (folder / MANIFEST).is_file(), force=False)


def make_tiny(folder: Path) -> None:
    """Write a two-layer Llama, its tokenizer and a ChatML template into `folder`; the same bytes every time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from omni_thinker.models.quiet import quiet

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        # Wider than usual, so that the next-token distribution is far from uniform and tests see it.
        initializer_range=0.1,
        pad_token_id=_SPECIAL.index(_PAD),
        bos_token_id=_SPECIAL.index(_BOS),
        eos_token_id=_SPECIAL.index(_EOS),
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        LlamaForCausalLM(config).save_pretrained(folder)
        _write_tokenizer(folder)
    manifest = {"name": "tiny", "source": "made here, random weights", "licence": "Apache-2.0", "recipe": _RECIPE}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(byte_level, VOCABULARY - len(_SPECIAL) - len(alphabet))
    tokens = [*_SPECIAL, *alphabet, *("".join(pair) for pair in merges)]
    bpe = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=_PAD,
        bos_token=_BOS,
        eos_token=_EOS,
        model_max_length=_CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)


def _merges(byte_level: object, count: int) -> list[tuple[str, str]]:
    """The `count` most frequent merges, ties by spelling: BPE training small enough to be the same everywhere."""
    words = [list(piece) for piece, _ in byte_level.pre_tokenize_str(_TEXT)]  # type: ignore[attr-defined]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        counts: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in itertools.pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        words = [_merge(word, best) for word in words]
    return merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged
