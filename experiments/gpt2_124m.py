"""GPT-2 small, trained from scratch on a folder of text or of token files.

    python -m experiments.gpt2_124m --dataset ./texts --precision bfloat16       # on a GPU or TPU
    python -m experiments.gpt2_124m --dataset ./texts --network llama --optimizer muon
    python -m experiments.gpt2_124m --smoke                                      # tiny, on a CPU

gpt2 has 124,439,808 parameters if the tokenizer has 50,257 tokens. llama is a network of the same width and
depth with rotary positions, RMSNorm and SwiGLU. `python -m dl write-tokens` makes token files of texts that
do not fit into memory.
"""

from typing import Any, Literal

from dl import Experiment, PositiveInt, main, optimizers, task
from dl.data import language_modeling
from dl.gradients import accumulated_gradient
from dl.models.gpt2 import GPT2
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


def experiment(
    dataset: TextDatasetName = "auto",
    tokenizer: TokenizerName | None = None,
    network: Literal["gpt2", "llama"] = "gpt2",
    optimizer: Literal["adamw", "muon"] = "adamw",
    sequence_length: SequenceLength = 1024,
    batch_size: BatchSize = 480,
    num_micro_batches: PositiveInt = 40,
    num_steps: PositiveInt = 20_000,
    learning_rate: LearningRate | None = None,
    remat: Rematerialization = "layers",
    smoke: bool = False,
    seed: Seed = 0,
) -> Experiment:
    """Returns GPT-2 small or its modern counterpart.

    Args:
      tokenizer: Tokenizer: bytes, characters, bpe:SIZE, or the path of a tokenizer.json. Default: that of the
        token files, or else characters.
      network: Architecture: gpt2 or llama.
      optimizer: Optimizer of the hidden matrices: adamw or muon.
      num_micro_batches: Number of parts into which a batch is divided to save memory.
      num_steps: Number of updates.
      learning_rate: Peak learning rate. Default: 0.0006 for adamw, 0.02 for muon.
      smoke: Train a tiny network on short rows of bytes, to test quickly that all works.
    """
    length = 32 if smoke else sequence_length
    size: dict[str, Any] = {"dim": 32, "num_layers": 2, "num_heads": 2} if smoke else {}
    words = "bytes" if smoke and dataset == "auto" else tokenizer
    data = language_modeling(dataset, sequence_length=length, tokenizer=words)
    deep: dict[str, Any] = {"is_scanned": True, "remat": "none" if smoke else remat}
    if network == "gpt2":
        model: Any = GPT2(data.vocab_size, length, **size, **deep)
    else:
        model = Llama(data.vocab_size, **{"dim": 768, "num_layers": 12, "num_heads": 12, **size}, **deep)
    peak = learning_rate or (6e-4 if optimizer == "adamw" else 0.02)
    rate = optimizers.cosine(peak, num_steps, warmup_steps=num_steps // 30, end=peak / 10)
    adamw = optimizers.adamw(rate, b2=0.95, weight_decay=0.1, clip_norm=1.0)
    return Experiment(
        data=data,
        task=task.language_model(model),
        tx=adamw if optimizer == "adamw" else optimizers.muon(rate, weight_decay=0.01),
        grad_fn=accumulated_gradient(1 if smoke else num_micro_batches),
        num_steps=num_steps,
        batch_size=8 if smoke else batch_size,
        eval_batch_size=8,
        eval_every=max(1, num_steps // 40),
        sample_prompts=1,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
