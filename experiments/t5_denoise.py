"""T5 restores spans that are missing from a text.

    python -m experiments.t5_denoise
    python -m experiments.t5_denoise --dataset ./novel.txt

The source is a text whose missing spans are marked, and the target is the spans.
"""

from dl import Experiment, Fraction, PositiveInt, main, optimizers, task
from dl.data import language_modeling
from dl.data.text.span_corruption import corrupt_spans
from dl.models.t5 import T5
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
    tokenizer: TokenizerName = "bpe:2000",
    sequence_length: SequenceLength = 128,
    dim: PositiveInt = 128,
    num_layers: PositiveInt = 3,
    dropout: Fraction = 0.1,
    batch_size: BatchSize = 32,
    num_steps: PositiveInt = 4000,
    learning_rate: LearningRate = 2e-3,
    remat: Rematerialization = "none",
    seed: Seed = 0,
) -> Experiment:
    """Returns a small T5 1.1 that reads 85 % of the tokens and writes the others.

    Args:
      dim: Width of the model, a multiple of 32.
      num_layers: Number of layers of the encoder, and of the decoder.
      dropout: Probability that a value is dropped in training.
      num_steps: Number of updates.
    """
    data = language_modeling(
        dataset, sequence_length=sequence_length, tokenizer=tokenizer, special=("padding", "end")
    )
    corrupt = corrupt_spans(data.tokenizer)
    assert corrupt.padding_id is not None
    assert corrupt.end_id is not None
    size = (corrupt.vocab_size, dim, num_layers, dim // 32)
    model = T5(*size, is_gated=True, is_tied=False, dropout=dropout, remat=remat)
    schedule = optimizers.cosine(learning_rate, num_steps, warmup_steps=num_steps // 20)
    return Experiment(
        data=data,
        augment=corrupt,
        task=task.sequence_to_sequence(
            model,
            start_id=corrupt.padding_id,
            end_id=corrupt.end_id,
            padding_id=corrupt.padding_id,
            corrupt=corrupt,
        ),
        tx=optimizers.adamw(schedule, weight_decay=0.01, clip_norm=1.0),
        num_steps=num_steps,
        batch_size=batch_size,
        eval_every=max(1, num_steps // 10),
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
