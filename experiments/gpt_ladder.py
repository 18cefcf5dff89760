"""A ladder of language models from 124 million to 70 billion parameters, trained on a folder of text.

    python -m dl plan gpt_ladder --size 7b --target tpu:v5e:16x16 --mesh fsdp=256 --precision bfloat16
    python -m experiments.gpt_ladder --size 1.3b --dataset ./texts --mesh fsdp=8 --precision bfloat16
    python -m experiments.gpt_ladder --smoke                                     # tiny, on a CPU

All sizes are the decoder of Llama with a vocabulary of 50,304, tied to the head up to 1.3b. docs/plans.md
states what each takes on TPUs and GPUs.
"""

from typing import Any, Literal

from dl import Experiment, PositiveInt, UserError, main, optimizers, task
from dl.data import language_modeling
from dl.gradients import accumulated_gradient, mean_gradient
from dl.models.llama import Llama
from dl.option_types import (
    BatchSize,
    LearningRate,
    Rematerialization,
    Seed,
    SequenceLength,
    TextDatasetName,
    TokenizerName,
)

SIZES: dict[str, dict[str, Any]] = {
    "124m": {"dim": 768, "num_layers": 12, "num_heads": 12, "is_tied": True},
    "350m": {"dim": 1024, "num_layers": 24, "num_heads": 16, "is_tied": True},
    "1.3b": {"dim": 2048, "num_layers": 24, "num_heads": 16, "is_tied": True},
    "7b": {"dim": 4096, "num_layers": 32, "num_heads": 32},
    "70b": {"dim": 8192, "num_layers": 80, "num_heads": 64, "num_kv_heads": 8, "hidden_dim": 28672},
}
PEAK = {"124m": 6e-4, "350m": 3e-4, "1.3b": 2e-4, "7b": 3e-4, "70b": 1.5e-4}


def experiment(
    dataset: TextDatasetName = "auto",
    tokenizer: TokenizerName | None = None,
    size: Literal["124m", "350m", "1.3b", "7b", "70b"] = "124m",
    vocab_size: PositiveInt = 50_304,
    sequence_length: SequenceLength = 2048,
    batch_size: BatchSize = 256,
    num_micro_batches: PositiveInt = 1,
    num_steps: PositiveInt = 20_000,
    learning_rate: LearningRate | None = None,
    remat: Rematerialization = "layers",
    smoke: bool = False,
    seed: Seed = 0,
) -> Experiment:
    """Returns a model of the ladder.

    Args:
      tokenizer: Tokenizer: bytes, characters, bpe:SIZE, or the path of a tokenizer.json. Default: that of the
        token files, or else characters.
      size: Number of parameters.
      vocab_size: Number of rows of the embeddings, at least that of the tokenizer.
      num_micro_batches: Number of parts into which a batch is divided to save memory.
      num_steps: Number of updates.
      learning_rate: Peak learning rate. Default: the published one for the size.
      smoke: Train a tiny network on short rows, to test quickly that all works.
    """
    data = language_modeling(dataset, sequence_length=sequence_length, tokenizer=tokenizer)
    if not smoke and data.vocab_size > vocab_size:
        raise UserError(f"vocab_size={vocab_size} is less than the {data.vocab_size} tokens; raise it")
    shape = {"dim": 32, "num_layers": 2, "num_heads": 2} if smoke else SIZES[size]
    rows = data.vocab_size if smoke else vocab_size
    model = Llama(rows, **shape, is_scanned=True, remat="none" if smoke else remat)
    peak = learning_rate or PEAK[size]
    rate = optimizers.cosine(peak, num_steps, warmup_steps=num_steps // 10, end=peak / 10)
    return Experiment(
        data=data,
        task=task.language_model(model),
        tx=optimizers.adamw(rate, b2=0.95, weight_decay=0.1, clip_norm=1.0),
        grad_fn=mean_gradient if num_micro_batches == 1 else accumulated_gradient(num_micro_batches),
        num_steps=num_steps,
        batch_size=batch_size,
        eval_batch_size=8,
        eval_every=max(1, num_steps // 40),
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
