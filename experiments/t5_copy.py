"""T5 copies or reverses a sequence of letters.

    python -m experiments.t5_copy
    python -m experiments.t5_copy --order reverse
    python -m dl generate runs/t5_copy-TIME "hello" --temperature 0

`exact_match` is the fraction of sequences whose letters are all right.

Measured on two cores of a shared Intel Xeon, with jax 0.10.2: on the test split it is 99.6 % (99.0 to 99.8)
for copies, after 2 minutes, and 99.1 % (98.3 to 99.5) for reversals, after 6 minutes while other work runs.
"""

from typing import Literal

from dl import Experiment, PositiveInt, main, optimizers, task
from dl.data.synthetic.pairs import sequence_pairs
from dl.models.t5 import T5
from dl.option_types import BatchSize, LearningRate, Seed


def experiment(
    order: Literal["copy", "reverse"] = "copy",
    max_length: PositiveInt = 12,
    dim: PositiveInt = 64,
    num_layers: PositiveInt = 2,
    batch_size: BatchSize = 64,
    num_steps: PositiveInt = 3000,
    learning_rate: LearningRate = 3e-3,
    seed: Seed = 0,
) -> Experiment:
    """Returns a small T5 1.1.

    Args:
      order: What is written: copy (the same letters) or reverse (the letters from last to first).
      max_length: Largest number of letters of a sequence, at least 5.
      dim: Width of the model, a multiple of 32.
      num_layers: Number of layers of the encoder, and of the decoder.
      num_steps: Number of updates.
    """
    data = sequence_pairs(max_length, is_reversed=order == "reverse")
    words = data.tokenizer
    assert words.start_id is not None
    assert words.end_id is not None
    assert words.padding_id is not None
    model = T5(words.vocab_size, dim, num_layers, dim // 32, is_gated=True, is_tied=False)
    schedule = optimizers.cosine(learning_rate, num_steps, warmup_steps=num_steps // 20)
    return Experiment(
        data=data,
        task=task.sequence_to_sequence(
            model, start_id=words.start_id, end_id=words.end_id, padding_id=words.padding_id
        ),
        tx=optimizers.adamw(schedule, clip_norm=1.0),
        num_steps=num_steps,
        batch_size=batch_size,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
