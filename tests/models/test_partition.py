"""The partition of Transformers over the axis `tensor`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dl import optimizers
from dl.activations import splitting_activations
from dl.errors import UserError
from dl.models.bert import BERT, BERTForMaskedLM
from dl.models.blocks.positions import Rotary
from dl.models.gpt2 import GPT2
from dl.models.llama import Llama
from dl.models.t5 import T5
from dl.models.transfer import WithHead
from dl.models.transformer import Transformer
from dl.models.vit import ViT
from dl.sharding import make_mesh, path_name, replicated, state_shardings
from dl.training.state import init_state
from tests.helpers import quick_jit

VOCAB, LENGTH, DIM, HIDDEN = 66, 8, 16, 48
SIZE = {"dim": DIM, "num_layers": 2, "num_heads": 4, "hidden_dim": HIDDEN}
MODELS = {
    "gpt2": GPT2(VOCAB, LENGTH, **SIZE),
    "llama": Llama(VOCAB, **SIZE, num_kv_heads=2),
    "llama, tied": Llama(VOCAB, **SIZE, is_tied=True),
    "bert": BERTForMaskedLM(BERT(VOCAB, LENGTH, **SIZE)),
    "bert, rotary": BERTForMaskedLM(BERT(VOCAB, LENGTH, **SIZE, rotary=Rotary(), is_norm_first=True)),
    "bert, head": WithHead(BERT(VOCAB, LENGTH, **SIZE, pooling="first"), 3),
    "t5": T5(VOCAB, **SIZE),
    "t5, gated": T5(VOCAB, **SIZE, is_gated=True, is_tied=False),
    "transformer": Transformer(VOCAB, **SIZE, max_length=LENGTH),
    "vit": ViT(10, DIM, 2, 4, patch_size=4, mlp_dim=HIDDEN),
}


def scanned(model):
    inner = next((name for name in ("encoder", "backbone") if hasattr(model, name)), None)
    if inner:
        return model.clone(**{inner: getattr(model, inner).clone(is_scanned=True)})
    return model.clone(is_scanned=True)


ALL = MODELS | {f"{name}, scanned": scanned(model) for name, model in MODELS.items() if name != "vit"}


def inputs_of(model, batch_size=4):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (batch_size, LENGTH)))
    if isinstance(model, ViT):
        return (jax.random.uniform(jax.random.key(0), (batch_size, 16, 16, 3)),)
    return (tokens, None, tokens) if isinstance(model, T5 | Transformer) else (tokens,)


def state_of(model):
    return jax.eval_shape(
        lambda: init_state(
            lambda key, inputs: model.init(key, *inputs), optimizers.muon(0.01), inputs_of(model), 0
        )
    )


def expected(name, rank):
    """Returns the axis that is split: outputs of the first products of a branch, inputs of the last."""
    if re.search(r"(attention/(query|key|value)|feed_forward/(in|gate)|mlp0)/(kernel|bias)$", name):
        return rank - 1
    if re.search(r"(attention/out|feed_forward/out|mlp1)/kernel$", name):
        return rank - 2
    if name.endswith("token_embedding/embedding"):
        return 0
    return 1 if name.endswith(("/head/kernel", "_bias/embedding")) else None


@pytest.mark.parametrize("name", ALL)
def test_heads_hidden_units_and_vocabulary_are_split_and_so_are_their_moments(name):
    model = ALL[name]
    state = state_of(model)
    shardings = state_shardings(state, make_mesh({"data": 4, "tensor": 2}), model.sharding_rules)
    split = {}
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(shardings), strict=True
    ):
        axes = [axis for axis, part in enumerate(sharding.spec) if part == "tensor"]
        split[path_name(path)] = axes[0] if axes else None
        wanted = expected(path_name(path), len(leaf.shape))
        if isinstance(model, ViT | WithHead) and "head/" in path_name(path):
            wanted = None  # a few classes
        assert split[path_name(path)] == wanted, path_name(path)
    names = [name for name, axis in split.items() if axis is not None]
    assert len(names) >= 2 * 6  # at least six kernels and their moments


@pytest.mark.parametrize("name", ["gpt2", "llama, scanned"])
def test_a_mesh_that_does_not_divide_the_heads_is_one_line(name):
    with pytest.raises(UserError, match=r"/attention/key/.* of shape .* into 3 parts over 'tensor'"):
        state_shardings(state_of(ALL[name]), make_mesh({"tensor": 3}), ALL[name].sharding_rules)


def test_a_vocabulary_that_the_mesh_does_not_divide_is_not_split():
    model = Llama(65, **SIZE)
    shardings = state_shardings(state_of(model), make_mesh({"tensor": 2}), model.sharding_rules)
    assert shardings.params["token_embedding"]["embedding"].spec == PartitionSpec()
    assert shardings.params["head"]["kernel"].spec == PartitionSpec()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2, scanned", "bert", "vit"])
def test_a_split_model_has_the_same_gradient_and_never_puts_a_kernel_together(name):
    model, inputs = ALL[name], inputs_of(ALL[name], 64)  # so many that it is cheaper to exchange kernels
    mesh = make_mesh({"data": 2, "tensor": 2})
    variables = quick_jit(model.init)(jax.random.key(1), *inputs)
    shardings = state_shardings(variables, mesh, model.sharding_rules)

    @jax.value_and_grad
    def gradient(variables):
        return jnp.square(model.apply(variables, *inputs)).mean()

    with splitting_activations(mesh):
        split = jax.jit(gradient, in_shardings=(shardings,), out_shardings=(replicated(mesh), shardings))
        quick = {"xla_backend_optimization_level": 0}
        compiled = split.lower(variables).compile(compiler_options=quick)
    found, wanted = compiled(jax.device_put(variables, shardings)), quick_jit(gradient)(variables)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)
    whole = rf"f32\[(2,)?({DIM},{HIDDEN}|{HIDDEN},{DIM})\]"
    assert not re.search(whole, compiled.as_text())


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "layers"])
def test_rematerialized_blocks_of_a_vision_transformer_compute_the_same(remat):
    model, inputs = MODELS["vit"].clone(dropout=0.2), inputs_of(MODELS["vit"])
    variables = quick_jit(model.init)(jax.random.key(1), *inputs)

    def gradient(model):
        def loss(variables):
            outputs = model.apply(variables, *inputs, train=True, rngs={"dropout": jax.random.key(2)})
            return jnp.square(outputs).mean()

        return jax.tree.leaves(quick_jit(jax.value_and_grad(loss))(variables))

    for found, wanted in zip(gradient(model.clone(remat=remat)), gradient(model), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=1e-5)
