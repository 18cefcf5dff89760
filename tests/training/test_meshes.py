"""Training on meshes of eight devices: the same losses as on one, and what each device holds."""

import functools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest

import dl
from dl import optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.experiment import Experiment
from dl.models.llama import Llama
from dl.models.vit import ViT
from dl.runs.console import Console
from dl.sharding import make_mesh, parse_mesh
from dl.training.program import Program
from dl.training.single import SINGLE

NUM_STEPS, BATCH_SIZE = 20, 16
WHOLE = "data=2,fsdp=2,tensor=2"
CASES = [
    *(("cnn", mesh) for mesh in ("data=8", "fsdp=8", WHOLE)),
    *(("vit", mesh) for mesh in ("fsdp=8", WHOLE)),
    *(("llama", mesh) for mesh in ("data=8", "fsdp=8", "tensor=2", WHOLE)),
]


class CNN(nn.Module):
    """Convolution, batch norm, dropout, and a kernel that is large enough to be split."""

    @nn.compact
    def __call__(self, image_BHWC, train=False):
        x = nn.Conv(16, (3, 3), strides=2)(image_BHWC)
        x = nn.gelu(nn.BatchNorm(use_running_average=not train)(x)).reshape(len(x), -1)
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(4)(nn.gelu(nn.Dense(64)(x)))


LLAMA = Llama(128, 128, 2, 8, hidden_dim=256, num_kv_heads=4, is_scanned=True)
LEARNERS = {
    "cnn": lambda: task.classification(CNN()),
    "vit": lambda: task.classification(ViT(4, 128, 1, 4, patch_size=4, mlp_dim=256)),
    "llama": lambda: task.language_model(LLAMA),
}


def experiment(name):
    random = np.random.default_rng(0)
    features = {
        "image": random.normal(size=(64, 16, 16, 3)).astype(np.float32),
        "label": random.integers(0, 4, 64).astype(np.int32),
        "tokens": random.integers(0, 128, (64, 16)).astype(np.int32),
    }
    names = ("image", "label") if name in ("cnn", "vit") else ("tokens",)
    return Experiment(
        data=ArraySplits(
            "noise", train=ArraySource({name: features[name] for name in names}), evaluations={}
        ),
        task=LEARNERS[name](),
        tx=optimizers.sgd(0.02, momentum=0.9) if name == "cnn" else optimizers.adamw(1e-3, clip_norm=1.0),
        num_steps=NUM_STEPS,
        batch_size=BATCH_SIZE,
    )


def mesh_of(text):
    return make_mesh(parse_mesh(text))


def losses(name, mesh):
    result = dl.train(experiment(name), mesh=mesh_of(mesh), log_every=1, console=Console(is_quiet=True))
    return [row["loss"] for row in result.history if row["kind"] == "train"]


@functools.cache
def losses_of_one_device(name):
    return losses(name, "data=1")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_every_mesh_has_the_losses_of_one_device(name, mesh):
    found, alone = losses(name, mesh), losses_of_one_device(name)
    assert len(found) == NUM_STEPS
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5)
    assert alone[0] - alone[-1] > 0.02  # it learns


@pytest.mark.parametrize(("mesh", "parts"), [("fsdp=8", 8), ("data=2,fsdp=2,tensor=2", 4)])
def test_a_mesh_divides_the_bytes_of_parameters_and_moments_by_its_devices(mesh, parts):
    batches = {"train": SINGLE.batches(experiment("llama").data.train, BATCH_SIZE, mesh_of(mesh), 0)}
    state = Program(experiment("llama"), mesh_of(mesh), batches).abstract_state
    for tree in (state.params, state.opt_state):
        leaves = jax.tree.leaves(tree)
        total = sum(leaf.size for leaf in leaves)
        on_one = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
        assert on_one == pytest.approx(total / parts, rel=0.05)
