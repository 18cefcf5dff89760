"""A published language model learns your own text by small adapters (LoRA).

    python -m experiments.finetune_gpt --weights ./gpt2 --dataset ./novel.txt
    python -m dl generate runs/finetune_gpt-TIME "Once upon a time"
    python -m experiments.finetune_gpt --smoke                    # a tiny network with random weights

The weights are a folder in the layout of Hugging Face, with config.json, model.safetensors and
tokenizer.json, or a name on its hub. The folder may hold GPT-2, Llama, Mistral or Qwen 3.
"""

from typing import Any

from dl import Experiment, PositiveFloat, PositiveInt, main, optimizers, task
from dl.data import language_modeling
from dl.methods.lora import LoRA, with_lora
from dl.models.gpt2 import GPT2
from dl.models.weights.files import local_copy
from dl.models.weights.hugging_face import described_model, pretrained_model
from dl.option_types import BatchSize, LearningRate, Seed, SequenceLength, TextDatasetName


def experiment(
    weights: str = "openai-community/gpt2",
    dataset: TextDatasetName = "auto",
    sequence_length: SequenceLength = 256,
    rank: PositiveInt = 8,
    alpha: PositiveFloat = 16.0,
    batch_size: BatchSize = 8,
    num_steps: PositiveInt = 500,
    learning_rate: LearningRate = 3e-4,
    smoke: bool = False,
    seed: Seed = 0,
) -> Experiment:
    """Returns a pretrained decoder with adapters of the queries and values of its attention.

    Args:
      weights: Folder of a published model, or its name on the Hugging Face hub.
      rank: Number of columns of the adapters.
      alpha: Strength of the adapters; they are multiplied by alpha / rank.
      num_steps: Number of updates.
      smoke: Train adapters of a tiny network of bytes with random weights, to test quickly that all works.
    """
    tokenizer = "bytes" if smoke else str(local_copy(weights, None, ["tokenizer.json"]) / "tokenizer.json")
    data = language_modeling(dataset, sequence_length=32 if smoke else sequence_length, tokenizer=tokenizer)
    model: Any = GPT2(data.vocab_size, 32, 32, 2, 2) if smoke else described_model(weights)
    adapters = LoRA(patterns=("query", "value"), rank=rank, alpha=alpha)
    return Experiment(
        data=data,
        task=with_lora(task.language_model(model), adapters),
        frozen=adapters.frozen,
        warm_start=None if smoke else pretrained_model(weights),
        tx=optimizers.adamw(optimizers.cosine(learning_rate, num_steps, warmup_steps=num_steps // 20)),
        num_steps=num_steps,
        batch_size=batch_size,
        eval_batch_size=8,
        eval_at_start=True,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
