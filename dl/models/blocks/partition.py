"""How the parameters of Transformers are split over the axis `tensor` of a mesh.

Queries, keys, values and hidden units are split over devices, and each device computes its own heads and
hidden units. The products with the `out` kernels are then added over the devices, once in each branch.
Source: Shoeybi et al. 2019, section 3.
"""

from jax.sharding import PartitionSpec

from dl.sharding import Rule

_FIRST = r"(attention/(query|key|value)|feed_forward/(in|gate))"
_LAST = r"(attention|feed_forward)/out"


def layer_rules(is_scanned: bool, has_biases: bool) -> tuple[Rule, ...]:
    """Returns the rules of the layers of a `Stack`, whose parameters have a leading axis if it is scanned."""
    start, leading = ("layer/", (None,)) if is_scanned else (r"layer\d+/", ())
    first_bias = Rule(rf"/{start}(cross_)?{_FIRST}/bias$", PartitionSpec(*leading, "tensor"))
    return (
        Rule(rf"/{start}(cross_)?{_FIRST}/kernel$", PartitionSpec(*leading, None, "tensor")),
        Rule(rf"/{start}(cross_)?{_LAST}/kernel$", PartitionSpec(*leading, "tensor", None)),
        *([first_bias] if has_biases else []),
    )


def vocabulary_rules(is_tied: bool = True) -> tuple[Rule, ...]:
    """Returns the rules of the embeddings and the head. Tokens are split where the mesh divides them."""
    embedding = Rule("token_embedding/embedding$", PartitionSpec("tensor", None), where_it_divides=True)
    head = Rule("(^|/)head/kernel$", PartitionSpec(None, "tensor"), where_it_divides=True)
    return (embedding,) if is_tied else (embedding, head)
