"""Published weights that write text without a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import UserError
from dl.data.text.tokenizers_subword import published
from dl.data.text.vocabulary import check_tokenizer, make_tokenizer
from dl.inference.published import load_writer
from dl.models.bert import BERT, BERTForMaskedLM
from dl.models.gpt2 import GPT2
from dl.models.t5 import T5
from dl.models.weights.hugging_face import save_model

TEXT = ["to be or not to be, that is the question: whether it is nobler in the mind to suffer"]


def folder_of(path, model, *inputs):
    """Writes a model with random weights, and a tokenizer of published form."""
    variables = jax.jit(model.init)(jax.random.key(0), *inputs)
    save_model(path, model, variables)
    tokenizer = make_tokenizer(check_tokenizer("bpe:270"), TEXT, special=("padding", "end"))
    (path / "tokenizer.json").write_text(json.loads(tokenizer.to_json())["tokenizer"])
    return variables


@pytest.mark.slow
def test_a_folder_of_gpt2_writes_as_its_logits_say(tmp_path, dl):
    model = GPT2(vocab_size=270, max_length=16, dim=8, num_layers=1, num_heads=2)
    variables = folder_of(tmp_path / "gpt2", model, jnp.zeros((1, 4), jnp.int32))
    writer = load_writer(tmp_path / "gpt2")
    (text,) = writer.generate("to be", max_tokens=3, temperature=0)
    tokens = published(str(tmp_path / "gpt2" / "tokenizer.json")).encode("to be")
    for token in text.tokens:
        logits_BTV = model.apply(variables, np.array([tokens]))
        assert token == logits_BTV[0, -1].argmax()
        tokens.append(token)
    options = ["--max-tokens", "3", "--temperature", "0"]
    status, out, _ = dl("generate", str(tmp_path / "gpt2"), "to be", *options)
    assert status == 0
    assert out.startswith("to be")
    with pytest.raises(UserError, match="context=17 is longer than the 16 tokens"):
        load_writer(tmp_path / "gpt2", context=17)
    with pytest.raises(UserError, match="context=0 is out of range"):
        load_writer(tmp_path / "gpt2", context=0)
    (tmp_path / "gpt2" / "tokenizer.json").unlink()
    status, out, err = dl("generate", str(tmp_path / "gpt2"), "to be")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "tokenizer.json" in err


@pytest.mark.slow
def test_t5_writes_another_text_and_bert_writes_none(tmp_path):
    model = T5(vocab_size=270, dim=8, num_layers=1, num_heads=2)
    tokens, mask = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    folder_of(tmp_path / "t5", model, tokens, mask, tokens, mask)
    (text,) = load_writer(tmp_path / "t5", context=8).generate("to be", max_tokens=4, temperature=0)
    assert 1 <= len(text.tokens) <= 4
    model = BERTForMaskedLM(BERT(vocab_size=270, max_length=16, dim=8, num_layers=1, num_heads=2))
    folder_of(tmp_path / "bert", model, tokens)
    with pytest.raises(UserError, match="does not write text; give a decoder or T5"):
        load_writer(tmp_path / "bert")
