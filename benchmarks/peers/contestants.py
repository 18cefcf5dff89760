"""Who is compared: each framework in several variants, each with and without a setting of the allocator."""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence

from benchmarks.peers.networks import Conv, Network

OURS = "dl"
# What each framework needs, by the names that are imported; the extra `peers` installs it.
PEERS: Mapping[str, Sequence[str]] = {"PyTorch": ("torch",), "Keras": ("keras", "tensorflow")}

# Memory of glibc. Large blocks are kept instead of being given back to the kernel at every step.
ALLOCATOR: Mapping[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
    "MALLOC_TOP_PAD_": str(2**28),
}
STEPS_IN_A_CALL = 50  # of small networks, where Keras can make several steps in one call
SMALL = 100  # steps in an epoch from which on a network is small


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A framework in one variant, which runs in a process of its own.

    Attributes:
      framework: `dl`, `PyTorch` or `Keras`.
      variant: words for the module of the framework; the first word of Keras is its backend.
      keeps_memory: whether the environment has `ALLOCATOR`.
    """

    framework: str
    variant: str
    keeps_memory: bool = True

    def __str__(self) -> str:
        if self.framework == OURS:
            return OURS
        return f"{self.framework} {self.variant}{'' if self.keeps_memory else ', plain allocator'}"

    def environment(self, of: Mapping[str, str], num_cores: int, cache: str) -> dict[str, str]:
        """Returns the environment of its process, made from that of another one.

        Args:
          of: the environment. Its settings of the allocator are removed.
          num_cores: number of cores, all of which every contestant uses.
          cache: folder of what compilers store.
        """
        made = {name: value for name, value in of.items() if name not in ALLOCATOR}
        if self.framework == "Keras":
            made |= {"KERAS_BACKEND": self.variant.split()[0], "KERAS_HOME": cache}
        if self.framework != OURS and self.keeps_memory:
            made |= ALLOCATOR
        return made | {
            "CUDA_VISIBLE_DEVICES": "",
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": f"{cache}/jax",
            "OMP_NUM_THREADS": str(num_cores),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
        }


def variants(network: Network, framework: str, *, with_unjitted: bool = False) -> list[Contestant]:
    """Returns the contestants of a framework for a network, all with the setting of the allocator.

    Args:
      network: the network.
      framework: `PyTorch` or `Keras`.
      with_unjitted: whether JAX without `jit` is among them, which runs each operation by itself.
    """
    if framework == "PyTorch":
        words = ["eager", "compiled"]
        if any(isinstance(layer, Conv) for layer in network.sequence):
            words += [f"{word} channels-last" for word in words]
    else:
        words = ["tensorflow", "tensorflow jitted", "jax jitted"]
        if network.steps >= SMALL:
            words += [f"tensorflow {STEPS_IN_A_CALL}", f"tensorflow jitted {STEPS_IN_A_CALL}"]
        words += ["jax"] if with_unjitted else []
    return [Contestant(framework, word) for word in words]


def missing(framework: str) -> list[str]:
    """Returns the names of what a framework needs and is not installed."""
    return [name for name in PEERS[framework] if importlib.util.find_spec(name) is None]
