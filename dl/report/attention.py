"""The section of attention: which tokens of one example a trained model attends to.

Shapes: B examples (one), L layers, N heads, T queries, S keys.
"""

import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dl.experiment import Experiment, variable_shapes
from dl.report.picture import to_data_uri
from dl.report.task import Example, TaskSection
from dl.report.token_text import TokenText
from dl.runs.folder import RunFolder
from dl.sharding import make_mesh, path_name
from dl.task import corrupted
from dl.training.restore import restore_variables
from dl.types import SEGMENT_IDS, Batch

MAX_TOKENS = 64  # of the example
MAX_MAPS = 16
_WEIGHTS = "weights"  # the name under which `blocks.attention.Attention` sows its weights


def attention_section(experiment: Experiment, run: RunFolder) -> TaskSection | None:
    """Returns pictures of attention weights; `None` if the model does not read tokens or has no attention.

    They are of the first example of the split `validation`, or else of the first split that is evaluated: of
    its first `MAX_TOKENS` tokens, in at most `MAX_MAPS` heads.

    Args:
      experiment: the experiment of the run.
      run: the folder of the finished run, from which the variables are read.

    Raises:
      UserError: the variables cannot be read.
    """
    kind, evaluations = experiment.task.kind, experiment.data.evaluations
    reads_tokens = (kind is not None and kind.reads_tokens) or SEGMENT_IDS in experiment.data.train.spec
    intermediates = experiment.task.intermediates
    if intermediates is None or not reads_tokens or not evaluations:
        return None
    split = "validation" if "validation" in evaluations else next(iter(evaluations))
    batch = _first_example(experiment, split)
    if not _weights(jax.eval_shape(intermediates, variable_shapes(experiment), batch)):
        return None
    variables = restore_variables(experiment, run, make_mesh())
    maps = list(_maps(jax.jit(intermediates)(variables, batch)))
    chosen = np.unique(np.linspace(0, len(maps) - 1, min(len(maps), MAX_MAPS)).round().astype(int))
    input_name = experiment.task.input_name
    length = _num_tokens(batch, input_name, None if kind is None else kind.padding_id)
    # The queries of a decoder with an encoder are not the tokens of the input.
    end = None if kind is not None and kind.name == "sequence_to_sequence" else length
    examples = [
        Example([("attention weights", _picture(weights_TS[:end, :end]))], (), name)
        for name, weights_TS in (maps[place] for place in chosen)
    ]
    named = f"{len(chosen)} of {len(maps)} heads" if len(chosen) < len(maps) else f"all {len(maps)} heads"
    text = TokenText(tuple(map(str, getattr(experiment.data, "token_names", ()))))
    tokens = np.asarray(batch[input_name])[0, :length].tolist()
    return TaskSection(
        "Attention",
        f"the first example of the {split} split, {named}. A row is a token that attends, a column a token "
        "that it attends to; the darker, the larger the weight (its square root is drawn)",
        [("tokens", text.join(tokens))],
        examples=[("Heads", examples)],
    )


def _first_example(experiment: Experiment, split: str) -> Batch:
    """Returns a batch with the first tokens of the first example of a split, as an evaluation reads it."""
    batch: Batch = {}
    for name, values in experiment.data.evaluations[split][np.arange(1)].items():
        is_row = values.ndim == 2 and values.dtype.kind in "iu"
        batch[name] = jnp.asarray(values[:, :MAX_TOKENS] if is_row else values)
    batch |= {"index": jnp.zeros(1, jnp.int32), "mask": jnp.ones(1, bool)}
    if experiment.preprocess is not None:
        batch = experiment.preprocess(batch)
    kind = experiment.task.kind
    return batch if kind is None or kind.corrupt is None else corrupted(batch, kind.corrupt)


def _weights(sown: object) -> list[tuple[str, jax.Array]]:
    """Returns the name and the weights of each attention, in the order of the layers.

    Their shape is B × N × T × S. Scanned layers have a leading axis L.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(sown):
        names = path_name(path).split("/")
        if _WEIGHTS in names and leaf.ndim in (4, 5):
            found.append(("/".join(names[: names.index(_WEIGHTS)]), leaf))
    return sorted(found, key=lambda pair: _in_order(pair[0]))


def _maps(sown: object) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and the weights, shape T × S, of each head of the first example."""
    for name, weights in _weights(sown):
        weights_LBNTS = np.asarray(weights if weights.ndim == 5 else weights[None])
        for layer, weights_NTS in enumerate(weights_LBNTS[:, 0]):
            scanned = f", layer {layer}" if weights.ndim == 5 else ""
            for head, weights_TS in enumerate(weights_NTS):
                yield f"{name}{scanned}, head {head}", weights_TS


def _in_order(name: str) -> list[tuple[int, str]]:
    """Returns a key that sorts layer2 before layer10."""
    return [(int(digits or 0), word) for word, digits in re.findall(r"(\D+)(\d*)", name)]


def _num_tokens(batch: Batch, input_name: str, padding_id: int | None) -> int:
    """Returns how many tokens of the example are not padding."""
    tokens_T = np.asarray(batch[input_name])[0]
    is_token_T = np.ones(tokens_T.shape, bool) if padding_id is None else tokens_T != padding_id
    if SEGMENT_IDS in batch:
        is_token_T = np.asarray(batch[SEGMENT_IDS])[0] > 0
    return max(int(is_token_T.sum()), 1)


def _picture(weights_TS: np.ndarray) -> str:
    share = np.sqrt(np.clip(np.nan_to_num(weights_TS.astype(np.float32)), 0, 1))
    return to_data_uri((255 * (1 - share)).round().astype(np.uint8)[..., None])
