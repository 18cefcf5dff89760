"""BERT classifies sentences of film reviews, after it has learned to restore their masked tokens.

    python -m experiments.bert_sentiment                      # pre-training first, kept for later runs
    python -m experiments.bert_sentiment --start random
    python -m experiments.bert_sentiment --dataset rt_polarity --folds 10
    python -m dl predict runs/bert_sentiment-TIME "A moving film."

The baseline is TF-IDF with a linear model.

Measured on SST-2 (6,920 sentences) on two cores of a shared Intel Xeon, with jax 0.10.2: pre-training takes
28 minutes while other work runs, and 5 epochs take 4 minutes. The test accuracy is 80.0 % (78.1 to 81.8), and
that of the baseline is 82.5 %. The network is worse by 2.5 points (0.7 to 4.3), paired.
"""

from typing import Literal

from dl import Experiment, Fraction, KeepBest, PositiveInt, main, optimizers, task
from dl.data import text_classification
from dl.evaluation.baselines import TfIdf
from dl.models.transfer import WithHead
from dl.option_types import BatchSize, LearningRate, NumEpochs, Seed, TextDatasetName, TokenizerName
from dl.types import Variables
from dl.warm_start import FromExperiment
from experiments import bert_mlm


def encoder_of(variables: Variables) -> Variables:
    """Returns the encoder of a masked language model as the backbone of a classifier."""
    return {"params": {"backbone": variables["params"]["encoder"]}}


def experiment(
    dataset: TextDatasetName = "auto",
    tokenizer: TokenizerName = "wordpiece:4000",
    start: Literal["pretrained", "random"] = "pretrained",
    max_length: PositiveInt = 48,
    dim: PositiveInt = 128,
    num_layers: PositiveInt = 4,
    dropout: Fraction = 0.2,
    batch_size: BatchSize = 32,
    num_epochs: NumEpochs = 5,
    learning_rate: LearningRate = 3e-4,
    smoke: bool = False,
    seed: Seed = 0,
) -> Experiment:
    """Returns a small BERT with a head on the mean of its outputs.

    Args:
      start: Where the encoder starts: pretrained (the end of bert_mlm on the same texts) or random.
      max_length: Number of tokens that are kept of a text.
      dim: Width of the model, a multiple of 32.
      num_layers: Number of layers.
      dropout: Probability that a value is dropped in training.
      smoke: Pre-train for a few steps, to test quickly that all works.
    """
    data = text_classification(
        dataset,
        max_length=max_length,
        buckets=bert_mlm.BUCKETS,
        tokenizer=tokenizer,
        special=bert_mlm.ROLES,
    )
    encoder = bert_mlm.bert(data.vocab_size, max_length, dim, num_layers, pooling="mean", dropout=dropout)
    before = {"dataset": dataset, "tokenizer": tokenizer, "sequence_length": max_length, "dim": dim}
    before |= {"num_layers": num_layers, "num_steps": 6 if smoke else 3000, "seed": seed}
    num_steps = data.steps(num_epochs, batch_size)
    schedule = optimizers.linear(learning_rate, num_steps, warmup_steps=num_steps // 10)
    return Experiment(
        data=data,
        warm_start=FromExperiment(bert_mlm.experiment, before, encoder_of) if start == "pretrained" else None,
        task=task.classification(WithHead(encoder, data.num_classes, dropout=dropout), input_name="tokens"),
        tx=optimizers.adamw(schedule, weight_decay=0.01, clip_norm=1.0),
        num_steps=num_steps,
        batch_size=batch_size,
        keep_best=KeepBest(metric="accuracy"),
        baseline=TfIdf(),
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
