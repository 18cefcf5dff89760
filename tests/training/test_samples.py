"""The texts that a model writes while it is trained."""

import dataclasses
import json

import pytest

import dl
from dl import Experiment, UserError, optimizers, task
from dl.data import language_modeling
from dl.models.llama import Llama
from dl.training.signals import Stopped
from tests.helpers import EXPERIMENT, SignallingConsole

TEXT = "".join(f"{k} green bottles hanging on the wall\n" for k in range(200))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("samples") / "bottles.txt"
    path.write_text(TEXT)
    return path


def experiment_of(path, prompts):
    data = language_modeling(path, sequence_length=32)
    return Experiment(
        data=data,
        task=task.language_model(Llama(data.vocab_size, dim=16, num_layers=1, num_heads=2)),
        tx=optimizers.adam(1e-2),
        num_steps=6,
        batch_size=8,
        eval_every=2,
        sample_prompts=prompts,
    )


def lines_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_resumed_run_has_the_samples_of_an_undisturbed_one(path, tmp_path, capsys):
    experiment = experiment_of(path, ["1 green", "12"])
    dl.train(experiment, tmp_path / "whole")
    whole = lines_of(tmp_path / "whole")
    assert [(line["step"], line["prompt"]) for line in whole] == [
        (step, prompt) for step in (2, 4, 6) for prompt in ("1 green", "12")
    ]
    assert all(len(line["text"]) == 200 for line in whole)
    assert "  writes: 1 green" in capsys.readouterr().out
    with pytest.raises(Stopped):
        dl.train(experiment, tmp_path / "cut", console=SignallingConsole(3))
    assert lines_of(tmp_path / "cut") == whole[:2]
    with (tmp_path / "cut" / "samples.jsonl").open("a") as file:  # as a killed process leaves it
        file.write(json.dumps({"step": 4, "prompt": "12", "text": "of later"}) + "\n" + '{"step": 4, "pro')
    dl.train(experiment, tmp_path / "cut")
    assert lines_of(tmp_path / "cut") == whole


@pytest.mark.slow
def test_a_number_of_prompts_are_beginnings_of_examples(path):
    experiment = experiment_of(path, 2)
    result = dl.train(experiment)
    first, second = sorted({line["prompt"] for line in result.samples})
    assert first in TEXT
    assert second in TEXT
    assert len(first) == len(second) == 16
    assert [line["step"] for line in result.samples] == [2, 2, 4, 4, 6, 6]


def test_prompts_that_cannot_be_read_are_refused_before_the_first_step(path, tmp_path):
    mistakes = {"a @": "'@'", "": "the prompt is empty", "1" * 33: "has 33 tokens", 7: "7 is not a string"}
    for prompt, message in mistakes.items():
        with pytest.raises(UserError, match=message):
            dl.train(experiment_of(path, [prompt]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="sample_prompts"):
        experiment_of(path, -1)


def test_a_model_that_does_not_write_is_refused_before_the_first_step(tmp_path):
    experiment = dataclasses.replace(EXPERIMENT, sample_prompts=["a"])
    with pytest.raises(UserError, match="only a language model or a sequence-to-sequence model can generate"):
        dl.train(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()
