"""Generation equals that of `transformers` with the same random weights.

pip install -e '.[dev,peers]'; nothing is downloaded.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import Experiment, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.data.text.tokenizer import ByteTokenizer
from dl.generation.sampling import Sampling, Settings, restricted_logits
from dl.generation.writer import Writer
from dl.models.weights.hugging_face import load_model

# Their warnings are not ours.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

TOKENIZER = ByteTokenizer(("end",))
PROMPT = "To be, or"


@pytest.fixture(scope="module")
def transformers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("torch", reason="needs the extra 'peers'")
        yield pytest.importorskip("transformers", reason="needs the extra 'peers'")


class TextSplits(ArraySplits):
    tokenizer = TOKENIZER


@pytest.fixture(scope="module")
def both(transformers, tmp_path_factory):
    """A GPT-2 with random weights in their library, and its writer in ours."""
    import torch

    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=TOKENIZER.vocab_size,
            n_positions=64,
            n_embd=16,
            n_layer=2,
            n_head=4,
            bos_token_id=TOKENIZER.end_id,
            eos_token_id=TOKENIZER.end_id,
            pad_token_id=TOKENIZER.end_id,
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in theirs.parameters():
            if tensor.ndim > 1:
                tensor.normal_(0, 3 * tensor.shape[-1] ** -0.5, generator=generator)
        # So that some texts end.
        theirs.transformer.wte.weight[TOKENIZER.end_id] *= 2
    folder = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder)
    model, variables = load_model(folder)
    experiment = Experiment(
        data=TextSplits("text", train=ArraySource({"tokens": np.zeros((2, 64), np.int32)})),
        task=task.language_model(model),
        tx=optimizers.adam(1e-3),
        num_steps=1,
        batch_size=2,
    )
    return theirs, Writer(experiment, variables)


def theirs_written(model, prompt, **options):
    import torch

    tokens = torch.tensor([list(prompt.encode())])
    with torch.no_grad():
        made = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    return tuple(made[0, tokens.shape[1] :].tolist())


@pytest.mark.parametrize("prompt", [PROMPT, "a", "x" * 30])
def test_the_most_probable_tokens(both, prompt):
    theirs, writer = both
    expected = theirs_written(theirs, prompt, max_new_tokens=25, do_sample=False)
    assert writer.generate(prompt, max_tokens=25, temperature=0)[0].tokens == expected


def test_a_repetition_penalty(both):
    theirs, writer = both
    expected = theirs_written(theirs, PROMPT, max_new_tokens=25, do_sample=False, repetition_penalty=1.8)
    (made,) = writer.generate(PROMPT, max_tokens=25, temperature=0, repetition_penalty=1.8)
    assert made.tokens == expected


@pytest.mark.parametrize("num_beams", [2, 5])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 3.0])
def test_a_beam_search(both, num_beams, length_penalty):
    theirs, writer = both
    for prompt in (PROMPT, "b", "Hamlet"):
        expected = theirs_written(
            theirs,
            prompt,
            max_new_tokens=12,
            do_sample=False,
            num_beams=num_beams,
            length_penalty=length_penalty,
            early_stopping=False,
        )
        (made,) = writer.generate(prompt, max_tokens=12, num_beams=num_beams, length_penalty=length_penalty)
        assert made.tokens == expected


def test_the_restrictions_of_a_choice(transformers):
    import torch
    from transformers.generation import logits_process

    random = np.random.default_rng(0)
    logits_RV = 2 * random.normal(size=(1, 50)).astype(np.float32)
    text = random.integers(0, 50, (1, 12))
    seen_RV = np.zeros((1, 50), bool)
    seen_RV[0, text[0]] = True
    sampling = Sampling(temperature=1.4, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.3)
    processors = [
        logits_process.RepetitionPenaltyLogitsProcessor(1.3),
        logits_process.TemperatureLogitsWarper(1.4),
        logits_process.TopKLogitsWarper(30),
        logits_process.TopPLogitsWarper(0.9),
        logits_process.MinPLogitsWarper(0.02),
    ]
    expected = torch.tensor(logits_RV)
    for process in processors:
        expected = process(torch.tensor(text), expected)
    ours = jax.jit(restricted_logits)(jnp.asarray(logits_RV), seen_RV, Settings.of(sampling))
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-5)
