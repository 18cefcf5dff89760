"""How fast a language model writes: one text, sixteen texts, and `transformers` with the same weights.

    python -m benchmarks.decoding [NUM_TOKENS]

The model has the shape of GPT-2 small with 8,192 tokens: 91 million random weights, which exceed the cache of
the processor. All figures are measured in this process, by turns; the median of each and the ratios are
printed. A step that writes one token must read all weights once. Its bound is therefore the time in which a
product of a matrix and a vector reads as many bytes, from a matrix of the same size; the better of the
products of NumPy and JAX counts. The bars: one text at 60 % of the bound or more, and sixteen texts with at
least 8 times the tokens a second of one. `transformers` is measured where it is installed (extra `peers`).
"""

import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dl import Experiment, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.data.text.tokenizer import CharacterTokenizer
from dl.generation.writer import Writer
from dl.models.gpt2 import GPT2
from dl.models.weights.hugging_face import save_model

VOCAB_SIZE, CONTEXT, REPEATS = 8_192, 128, 5
COUNTS = {"one text": 1, "sixteen texts": 16}
PROMPT = "\u4e00\u4e01\u4e02"  # three tokens


class TextSplits(ArraySplits):
    # As many characters as tokens; a text never ends by itself.
    tokenizer = CharacterTokenizer("".join(map(chr, range(0x4E00, 0x4E00 + VOCAB_SIZE))))


def seconds(run: Callable[[], Any]) -> float:
    """Returns the seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def matrix_products(num_bytes: int) -> dict[str, Callable[[], Any]]:
    """Returns products of a matrix of about this many bytes and a vector, in NumPy and in JAX."""
    matrix = np.random.default_rng(0).standard_normal((num_bytes // 4 // 8192, 8192), np.float32)
    vector, on_device = matrix[:, 0].copy(), jnp.asarray(matrix)
    in_numpy = matrix[0].copy()
    product = jax.jit(lambda vector, matrix: vector @ matrix)
    return {
        "NumPy": lambda: matrix @ in_numpy,
        "JAX": lambda: product(vector, on_device).block_until_ready(),
    }


def transformers_writer(model: GPT2, variables: Any) -> Callable[[int, int], Any] | None:
    """Returns a function from numbers of texts and tokens that writes them with `transformers`."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, model, variables)
        theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()

    def write(num_texts: int, num_tokens: int) -> Any:
        prompts = torch.zeros((num_texts, len(PROMPT)), dtype=torch.long)
        with torch.no_grad():
            return theirs.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
                pad_token_id=0,
            )

    return write


def main() -> None:
    num_tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    model = GPT2(vocab_size=VOCAB_SIZE, max_length=CONTEXT)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    # The embeddings of positions are not read as a whole.
    params = {name: part for name, part in variables["params"].items() if name != "position_embedding"}
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    experiment = Experiment(
        data=TextSplits("text", train=ArraySource({"tokens": np.zeros((1, CONTEXT), np.int32)})),
        task=task.language_model(model),
        tx=optimizers.adam(1e-3),
        num_steps=1,
        batch_size=1,
    )
    writer = Writer(experiment, variables)
    runs = {f"product in {name}": run for name, run in matrix_products(num_bytes).items()}
    write = transformers_writer(model, variables)
    for name, num_texts in COUNTS.items():
        prompts = [PROMPT] * num_texts
        runs[name] = functools.partial(writer.generate, prompts, max_tokens=num_tokens, temperature=0)
        if write is not None:
            runs[f"{name}, transformers"] = functools.partial(write, num_texts, num_tokens)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(REPEATS + 1):
        for name, run in runs.items():
            taken = seconds(run)
            if repeat:  # the first call compiles
                times[name].append(taken)
    median = {name: statistics.median(each) for name, each in times.items()}
    bound = 1 / min(median["product in NumPy"], median["product in JAX"])
    bandwidth = num_bytes * bound / 1e9
    print(f"{num_bytes / 1e6:.0f} MB of weights; the bound is {bound:.1f} tokens/s ({bandwidth:.1f} GB/s)")
    rates = {}
    for name, num_texts in COUNTS.items():
        rates[name] = num_texts * num_tokens / median[name]
        print(f"{name}: {rates[name]:.1f} tokens/s")
        if write is not None:
            theirs = median[f"{name}, transformers"] / median[name]
            print(f"{name}: {theirs:.2f} times the rate of transformers")
    print(f"one text: {rates['one text'] / bound:.0%} of the bound (bar: 60 %)")
    print(f"sixteen texts: {rates['sixteen texts'] / rates['one text']:.1f} times the rate of one (bar: 8)")


if __name__ == "__main__":
    main()
