"""Texts of models: against the whole forward pass, beside other texts, by beams, and beyond the context."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dl import Experiment, UserError, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.data.text.tokenizer import ByteTokenizer, CharacterTokenizer
from dl.generation.writer import Writer
from dl.models.gpt2 import GPT2
from dl.models.llama import Llama
from dl.models.t5 import T5

CONTEXT = 32
BYTES = ByteTokenizer(("end",))
MODEL = GPT2(vocab_size=260, max_length=CONTEXT, dim=16, num_layers=1, num_heads=2)


class TextSplits(ArraySplits):
    def __init__(self, tokenizer, **features):
        super().__init__("text", train=ArraySource(features))
        self.tokenizer = tokenizer


def experiment_of(model, tokenizer=BYTES, of_task=None, **features):
    features = features or {"tokens": np.zeros((2, CONTEXT), np.int32)}
    return Experiment(
        data=TextSplits(tokenizer, **features),
        task=of_task or task.language_model(model),
        tx=optimizers.adam(1e-3),
        num_steps=1,
        batch_size=2,
    )


def wide(variables):
    """Makes the logits differ more than those of a new model."""
    return jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, variables)


def variables_of(model, seed=0):
    tokens = jnp.zeros((1, 4), jnp.int32)
    return wide(jax.jit(model.init)(jax.random.key(seed), tokens))


@pytest.fixture(scope="module")
def variables():
    return variables_of(MODEL)


@pytest.fixture(scope="module")
def writer(variables):
    return Writer(experiment_of(MODEL), variables)


def log_probs_of(model, variables, tokens):
    """Returns the log-probabilities of the next token at each place, by the forward pass of the whole row."""
    padded_BT = np.zeros((1, CONTEXT), np.int32)
    padded_BT[0, : len(tokens)] = tokens
    return np.asarray(forward(model, variables, padded_BT))[0, : len(tokens)]


@functools.partial(jax.jit, static_argnums=0)
def forward(model, variables, tokens_BT):
    return jax.nn.log_softmax(model.apply(variables, tokens_BT))


@pytest.mark.slow
def test_log_probabilities_are_those_of_the_whole_forward_pass(writer, variables):
    for made in writer.generate(["To be", "or not"], max_tokens=12, temperature=0.8, top_k=20):
        prompt = list(made.prompt.encode())
        log_probs_TV = log_probs_of(MODEL, variables, [*prompt, *made.tokens])[len(prompt) - 1 : -1]
        expected = log_probs_TV[np.arange(12), list(made.tokens)]
        np.testing.assert_allclose(made.log_probabilities, expected, atol=2e-5)
        of_tokens_TV = log_probs_TV[:, : BYTES.vocab_size]  # the model has more outputs
        assert np.all(np.sum(of_tokens_TV > expected[:, None], 1) < 20)  # one of the top 20
        assert made.text == BYTES.decode(made.tokens)


@pytest.mark.slow
def test_a_text_has_the_same_bits_beside_any_others(writer):
    options = {"max_tokens": 6, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 5}
    prompts = [chr(97 + k) * (5 + k % 12) for k in range(16)]
    alone = {prompt: writer.generate(prompt, **options)[0] for prompt in prompts}
    random = np.random.default_rng(0)
    for size in (2, 3, 16, 20):
        for _ in range(3):
            beside = list(random.permutation(prompts)[:size]) + list(
                random.choice(prompts, max(0, size - 16))
            )
            assert writer.generate(beside, **options) == [alone[prompt] for prompt in beside]


@pytest.mark.slow
def test_there_is_one_program_for_writing_and_one_for_each_power_of_two(variables):
    writer = Writer(experiment_of(MODEL), variables)
    for length in (1, 3, 4, 5, 8, 17, 30):
        writer.generate(["x" * length] * 3, max_tokens=2, top_k=length)
    assert writer._programs._write._cache_size() == 1
    assert writer._programs._admit._cache_size() == 3


def test_samples_differ_and_follow_from_the_seed(writer):
    texts = writer.generate(["a", "b"], num_samples=3, max_tokens=8, seed=1)
    assert [made.prompt for made in texts] == ["a"] * 3 + ["b"] * 3
    assert len({made.tokens for made in texts}) == 6
    assert writer.generate("a", num_samples=2, max_tokens=8, seed=1) == texts[:2]
    assert writer.generate("a", max_tokens=8, seed=2)[0] != texts[0]
    assert writer.generate("a", max_tokens=5, seed=1)[0].tokens == texts[0].tokens[:5]


def test_a_stream_is_the_text_in_pieces(writer):
    (made,) = writer.generate("To be", max_tokens=16)
    pieces = list(writer.stream("To be", max_tokens=16))
    assert len(pieces) > 1
    assert "".join(pieces) == made.text


def test_a_text_beyond_the_context_goes_on_from_the_last_half(writer, variables):
    (made,) = writer.generate("12345678", max_tokens=60)
    history = list(b"12345678")
    seen = list(history)  # what the model has read
    for token, log_prob in zip(made.tokens, made.log_probabilities, strict=True):
        assert np.isclose(log_prob, log_probs_of(MODEL, variables, seen)[-1, token], atol=1e-4)
        history.append(token)
        seen.append(token)
        if len(seen) > CONTEXT:
            seen = history[-CONTEXT // 2 :]


def without_decoder(model):
    def apply(params, model_state, inputs, key):
        tokens_BT = inputs[0] if isinstance(inputs, tuple) else inputs
        return model.apply({"params": params}, tokens_BT), model_state

    return task.Model(lambda key, inputs: model.init(key, inputs[0]), apply)


@pytest.mark.slow
def test_a_model_without_a_cache_writes_the_same(writer, variables):
    slow = Writer(experiment_of(without_decoder(MODEL)), variables)
    for options in ({"temperature": 0}, {"seed": 3, "top_k": 50}, {"num_beams": 3}):
        ours, theirs = (each.generate("To be", max_tokens=8, **options)[0] for each in (slow, writer))
        assert ours.tokens == theirs.tokens
        np.testing.assert_allclose(ours.log_probabilities, theirs.log_probabilities, atol=2e-5)


LETTERS = CharacterTokenizer("ab", ("end", "start"))


@pytest.mark.slow
def test_a_wide_beam_search_finds_the_best_of_all_texts():
    model = GPT2(vocab_size=4, max_length=8, dim=8, num_layers=1, num_heads=2)
    variables = variables_of(model, seed=1)
    writer = Writer(experiment_of(model, LETTERS, tokens=np.zeros((2, 8), np.int32)), variables)
    end, num_tokens = LETTERS.end_id, 4
    ended = {}
    rows = list(itertools.product(range(4), repeat=num_tokens))
    all_log_probs = np.asarray(forward(model, variables, np.array([[0, 1, *row] for row in rows])))
    for row, log_probs_TV in zip(rows, all_log_probs[:, 1:], strict=True):
        length = row.index(end) + 1 if end in row else num_tokens
        ended[row[:length]] = sum(log_probs_TV[t, row[t]] for t in range(length))
    for penalty in (0.0, 1.0, 2.0):
        best = max(ended, key=lambda row: ended[row] / len(row) ** penalty)
        # With early_stopping=False a search may end too soon where long texts are preferred.
        (made,) = writer.generate("ab", max_tokens=num_tokens, num_beams=64, length_penalty=penalty)
        assert made.tokens == best
        assert np.isclose(sum(made.log_probabilities), ended[best], atol=1e-4)
        assert made.finish_reason == ("end" if end in best else "length")


def test_the_empty_prompt_begins_with_the_start_token(writer):
    (made,) = writer.generate("", max_tokens=3)
    assert len(made.tokens) == 3  # the end token is the start here
    bare = Writer(experiment_of(MODEL, ByteTokenizer()), variables_of(MODEL))
    with pytest.raises(UserError, match="the prompt is empty"):
        bare.generate("")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("x" * 33, "has 33 tokens.*32"), (3, "not a string")],
)
def test_a_prompt_that_cannot_be_read_is_refused(writer, prompt, message):
    with pytest.raises(UserError, match=message):
        writer.generate([prompt])


def test_a_model_that_does_not_write_is_refused():
    data = {"tokens": np.zeros((2, 4), np.int32), "label": np.zeros(2, np.int32)}
    classifier = task.classification(MODEL, input_name="tokens")
    with pytest.raises(UserError, match="classification; only a language model"):
        Writer(experiment_of(MODEL, of_task=classifier, **data), {})
    with pytest.raises(UserError, match="do not have a tokenizer"):
        Writer(experiment_of(MODEL, tokenizer=None), {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        Llama(260, 24, 2, 3, num_kv_heads=1, is_scanned=True),
        GPT2(vocab_size=260, max_length=CONTEXT, dim=768, num_layers=1, num_heads=12),
    ],
    ids=["llama", "gpt2"],
)
def test_all_places_and_sizes_of_a_batch_give_the_same_bits(model):
    writer = Writer(experiment_of(model), variables_of(model))
    alone = writer.generate("To be", max_tokens=5)[0]
    others = [chr(97 + k) * (1 + 3 * k % 19) for k in range(15)]
    for size in range(1, 17):
        for place in {0, size // 2, size - 1} if size < 16 else range(16):
            prompts = [*others[:place], "To be", *others[place : size - 1]]
            assert writer.generate(prompts, max_tokens=5)[place] == alone


class InNNX(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(260, 8, rngs=rngs)
        self.out = nnx.Linear(8, 260, rngs=rngs)

    def __call__(self, tokens_BT):
        return self.out(jnp.cumsum(self.embed(tokens_BT), axis=1))


class Plain(nn.Module):
    @nn.compact
    def __call__(self, tokens_BT):
        return nn.Dense(260)(jnp.cumsum(nn.Embed(260, 8)(tokens_BT), axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("model", [lambda rngs: InNNX(rngs), Plain()], ids=["nnx", "linen"])
def test_any_causal_model_writes(model):
    experiment = experiment_of(model)
    batch = {"tokens": jnp.zeros((2, CONTEXT), jnp.int32)}
    variables = wide(experiment.task.init(jax.random.key(0), batch))
    (made,) = Writer(experiment, variables).generate("ab", max_tokens=5, temperature=0)
    predict = jax.jit(experiment.task.predict)
    tokens_BT = np.zeros((1, CONTEXT), np.int32)
    tokens_BT[0, :7] = [*b"ab", *made.tokens]
    logits_BTV = predict(variables, {"tokens": tokens_BT})
    np.testing.assert_array_equal(logits_BTV[0, 1:6].argmax(-1), made.tokens)


@pytest.mark.slow
def test_a_translation_is_the_most_probable_target():
    tokenizer = ByteTokenizer(("padding", "start", "end"))
    model = T5(vocab_size=260, dim=16, num_layers=1, num_heads=2)
    sequence = task.sequence_to_sequence(
        model, start_id=tokenizer.start_id, end_id=tokenizer.end_id, padding_id=tokenizer.padding_id
    )
    data = {"source": np.zeros((2, 12), np.int32), "target": np.zeros((2, 9), np.int32)}
    experiment = experiment_of(model, tokenizer, sequence, **data)
    batch = {name: jnp.asarray(value) for name, value in data.items()}
    variables = wide(experiment.task.init(jax.random.key(0), batch))
    writer = Writer(experiment, variables)
    (greedy,) = writer.generate("ab", max_tokens=6, temperature=0)
    source_BS, target_BT = (np.full((1, size), tokenizer.padding_id, np.int32) for size in (12, 9))
    source_BS[0, :3] = [*b"ab", tokenizer.end_id]
    length = len(greedy.tokens)
    target_BT[0, :length] = greedy.tokens
    predict = jax.jit(experiment.task.predict)
    logits_BTV = predict(variables, {"source": source_BS, "target": target_BT})
    expected = logits_BTV[0, :length, : tokenizer.vocab_size].argmax(-1)
    np.testing.assert_array_equal(greedy.tokens, expected)
    assert writer.generate(["x", "ab", "yz"], max_tokens=6, temperature=0)[1] == greedy
    (beams,) = writer.generate("ab", max_tokens=6, num_beams=4, length_penalty=0.0)
    assert sum(beams.log_probabilities) >= sum(greedy.log_probabilities) - 1e-5
    # The target has 9 places, and nothing is written after them without the beginning.
    (full,) = writer.generate("ab", max_tokens=30, temperature=0)
    assert len(full.tokens) <= 10
    assert full.finish_reason in ("length", "end")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "there is no option num_tokens; did you mean max_tokens?"),
        ({"xyz": 0}, "there is no option xyz; the options are max_tokens, temperature"),
    ],
)
def test_an_unknown_option_is_one_line(writer, options, message):
    for use in (writer.generate, writer.stream):
        with pytest.raises(UserError) as error:
            use("ab", **options)
        assert message in str(error.value)


@pytest.mark.slow
def test_prompts_with_one_seed_have_draws_of_their_own():
    """Logits that do not depend on the prompt, so that equal draws would give equal texts."""
    model = GPT2(vocab_size=260, max_length=CONTEXT, dim=16, num_layers=1, num_heads=2)
    zero = jax.tree.map(jnp.zeros_like, variables_of(model))
    writer = Writer(experiment_of(model), zero)
    texts = writer.generate(["ab", "cd", "ab"], max_tokens=12, seed=3)
    assert texts[0].tokens == texts[2].tokens != texts[1].tokens
