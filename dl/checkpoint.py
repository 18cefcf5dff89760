"""Checkpoints: asynchronous, atomic, with a digest for each leaf. Nothing else touches orbax.

Orbax writes a step into a temporary folder and renames it when it is complete, so a killed process leaves
no half checkpoint. What it does not notice is a bit that flips in a stored tensor: the digests do.
"""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dl.digest import leaf_digests
from dl.errors import UserError


class Checkpoints:
    """The checkpoints of one run, by step.

    Attributes:
      directory: one subfolder for each step.
    """

    def __init__(self, directory: Path, keep: int = 2):
        import orbax.checkpoint as ocp  # slow to import, and evaluation does without

        self.directory = directory.resolve()
        self._ocp = ocp
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    @property
    def steps(self) -> list[int]:
        """The steps whose checkpoints are complete, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Stores `state` and the JSON values `progress`; writing goes on in the background.

        The state may be donated to the next step at once: what is written is a copy.
        """
        if step in self.steps:
            return
        state = self._copy(state)
        extra = {"progress": progress, "digests": leaf_digests(state)}
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(state=args.StandardSave(state), extra=args.JsonSave(extra)),
            force=True,
        )

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns the newest intact state and its progress, None if nothing was ever saved.

        Checkpoints that are damaged are reported by a warning and set aside.

        Args:
          abstract_state: of `jax.ShapeDtypeStruct`s with the shardings wanted now; they may differ from
            those the state was saved with.

        Raises:
          UserError: there are checkpoints and none is intact.
        """
        reasons = []
        for step in reversed(self.steps):
            try:
                return self._restore_step(step, abstract_state)
            # Damage shows as whatever the reader of the damaged file happens to raise.
            except Exception as error:
                reason = f"checkpoint {self.directory / str(step)} is damaged ({_brief(error)})"
                reasons.append(reason)
                warnings.warn(f"{reason}; trying an older one", stacklevel=2)
        if reasons:
            raise UserError(f"{'; '.join(reasons)}; none is intact, start in another --workdir")
        return None

    def _restore_step(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        args = self._ocp.args
        restored = self._manager.restore(
            step,
            args=args.Composite(state=args.StandardRestore(abstract_state), extra=args.JsonRestore()),
        )
        digests = leaf_digests(restored.state)
        for name, digest in restored.extra["digests"].items():
            if digests.get(name, digest) != digest:
                raise ValueError(f"the digest of {name} does not match its content")
        for later in [s for s in self.steps if s > step]:
            self._set_aside(later)
        return restored.state, restored.extra["progress"]

    def _set_aside(self, step: int) -> None:
        number = 1
        while (aside := self.directory.parent / f"damaged-checkpoint-{step}-{number}").exists():
            number += 1
        (self.directory / str(step)).rename(aside)
        self._manager.reload()

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
