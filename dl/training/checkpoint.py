"""Checkpoints: asynchronous, atomic, with digests and the identity of their run. No other module uses orbax.

Orbax renames the folder of a step when it is complete, so a killed process leaves no incomplete checkpoint.
In a bucket, which cannot rename, it writes a marker last, and a folder without the marker does not count.
Digests of each leaf and of the record notice a flipped bit, which orbax does not. This module also works
around limits of orbax: special characters in paths, output of its threads, and errors of the disk.
"""

import contextlib
import functools
import itertools
import logging
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp

from dl.errors import StorageError, UserError
from dl.runs.digest import leaf_digests
from dl.runs.shared import wait_for_all
from dl.sharding import path_name
from dl.system.bucket import COMMITTED, url_of, why_unreachable
from dl.system.files import storage_reason
from dl.system.json_files import DIGEST_KEY, json_digest

_TEMPORARY = ".orbax-checkpoint-tmp"
# Orbax and tensorstore read these characters as a pattern, a separator or the scheme of an address.
_NOT_PLAIN = re.compile(r"[\[\]*?\\]|:/")


class Checkpoints:
    """The checkpoints of one run, by step.

    Attributes:
      directory: one subfolder for each step.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        identity: Mapping[str, Any] | None = None,
        is_read_only: bool = False,
    ):
        """Opens the checkpoints, and removes incomplete ones of killed processes.

        Args:
          directory: the directory; it is created if it does not exist.
          keep: the number of checkpoints that are kept, the newest ones.
          identity: the identity of the run, see `Run.identity`. `None` allows any run.
          is_read_only: whether nothing on the disk may change.
        """
        import orbax.checkpoint as ocp  # slow to import, and not needed for evaluation

        _keep_threads_quiet()
        self._is_in_bucket = url_of(directory) is not None
        self.directory: Any = directory if self._is_in_bucket else directory.resolve()
        self._ocp = ocp
        self._identity = identity
        self._is_read_only = is_read_only
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        self._link: Path | None = None
        self._manager: Any = None
        if not is_read_only:
            with self._storing():
                self.directory.mkdir(parents=True, exist_ok=True)
                self._remove_leftovers()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False, read_only=is_read_only)
        self._manager = ocp.CheckpointManager(self._plain_directory(), options=options)

    @property
    def steps(self) -> list[int]:
        """The steps whose checkpoints are complete, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Stores a copy of `state` and the JSON values `progress`; writing continues in the background.

        Raises:
          StorageError: this checkpoint or the previous one cannot be written.
        """
        self.wait()
        if step in self.steps:
            return
        state = self._copy(state)
        extra = {"run": self._identity, "progress": progress, "digests": leaf_digests(state)}
        args = self._ocp.args
        with self._storing():
            self._manager.save(
                step,
                args=args.Composite(
                    state=args.StandardSave(state),
                    extra=args.JsonSave({**extra, DIGEST_KEY: json_digest(extra)}),
                ),
                force=True,
            )

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          StorageError: a checkpoint could not be written.
        """
        with self._storing():
            self._manager.wait_until_finished()

    def restore(
        self, abstract_state: Any, trouble_with: Callable[[Any], str] = lambda state: ""
    ) -> tuple[Any, dict[str, Any]] | None:
        """Returns the newest intact state and its progress; `None` if nothing was saved.

        Checkpoints that are damaged are reported by a warning and set aside.

        Args:
          abstract_state: the state as `jax.ShapeDtypeStruct`s with the desired shardings. They may differ
            from the shardings of the saved state.
          trouble_with: returns why a state must not be used; empty if it may be used.

        Raises:
          UserError: no checkpoint is intact, or the checkpoints belong to another run.
        """
        reasons = []
        for step in reversed(self.steps):
            place = self.directory / str(step)
            try:
                state, extra = self._read_step(step, abstract_state)
                self._check_run(place, extra)
                if trouble := trouble_with(state):
                    raise ValueError(trouble)
            except UserError:
                raise
            # A damaged file can raise any exception in the library that reads it.
            except Exception as error:
                if self._is_in_bucket and (why := why_unreachable(error)):
                    raise StorageError(
                        f"{place} cannot be read ({why}); run the same command again"
                    ) from error
                reason = f"checkpoint {place} is damaged ({_brief(error)})"
                reasons.append(reason)
                if step != self.steps[0]:
                    warnings.warn(f"{reason}; trying an older one", stacklevel=2)
                continue
            for later in [s for s in self.steps if s > step and not self._is_read_only]:
                self._set_aside(later)
            return state, extra["progress"]
        if reasons:
            raise UserError(f"{'; '.join(reasons)}; no checkpoint is intact; start in another --workdir")
        return None

    def _read_step(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        args = self._ocp.args
        restored = self._manager.restore(
            step,
            args=args.Composite(state=args.StandardRestore(abstract_state), extra=args.JsonRestore()),
        )
        for (path, wanted), leaf in zip(
            jax.tree_util.tree_leaves_with_path(abstract_state), jax.tree.leaves(restored.state), strict=True
        ):
            if (leaf.shape, leaf.dtype) != (wanted.shape, wanted.dtype):
                raise ValueError(
                    f"{path_name(path)} is {leaf.dtype}{leaf.shape}; expected {wanted.dtype}{wanted.shape}"
                )
        extra = dict(restored.extra)
        _check_digest(extra)
        digests = leaf_digests(restored.state)
        for name, digest in extra["digests"].items():
            if digests.get(name, digest) != digest:
                raise ValueError(f"the digest of {name} does not match its content")
        return restored.state, extra

    def _check_run(self, place: Path, extra: Mapping[str, Any]) -> None:
        here, there = self._identity, extra.get("run")
        # Runs of an older version have no identity, and their first checkpoints hold none.
        if here is None or there == here or (there is None and here.get("id") is None):
            return
        raise UserError(
            f"checkpoint {place} belongs to another run; restore the checkpoints folder of this run, or "
            "start in another --workdir"
        )

    def _set_aside(self, step: int) -> None:
        names = (self.directory.parent / f"damaged-checkpoint-{step}-{k}" for k in itertools.count(1))
        aside = next(path for path in names if not path.exists())
        wait_for_all(f"read the checkpoint of step {step}")
        if jax.process_index() == 0:
            with self._storing():
                (self.directory / str(step)).rename(aside)
        wait_for_all(f"set aside the checkpoint of step {step}")
        self._manager.reload()

    def _remove_leftovers(self) -> None:
        if jax.process_index():
            return
        for path in list(self.directory.iterdir()):
            if self._is_in_bucket:
                if path.name.isdecimal() and not (path / COMMITTED).exists():
                    path.rmtree(missing_ok=True)
            elif _TEMPORARY in path.name:
                shutil.rmtree(path, ignore_errors=True)

    def _plain_directory(self) -> Path:
        """Returns the directory, or a link to it if its path has characters that orbax misreads."""
        if self._is_in_bucket or not _NOT_PLAIN.search(f"{self.directory}/"):
            return self.directory
        self._link = Path(tempfile.mkdtemp(prefix="dl-")) / "checkpoints"
        self._link.symlink_to(self.directory, target_is_directory=True)
        return self._link

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        """Turns an error of the disk into a StorageError of one line."""
        try:
            yield
        except Exception as error:
            reason = (why_unreachable(error) if self._is_in_bucket else None) or storage_reason(error)
            if reason is None:
                raise
            if not self._is_read_only:
                with contextlib.suppress(OSError):
                    self._remove_leftovers()  # which frees the space on the disk
            steps = self.steps if self._manager is not None else []
            saved = f"the checkpoint of step {steps[-1]:,} is kept" if steps else "none was saved before"
            raise StorageError(
                f"a checkpoint in {self.directory} cannot be written ({reason}); {saved}; free some space, "
                "then run the same command again to resume"
            ) from error

    def close(self) -> None:
        """Waits until everything is written, and releases the folder.

        Raises:
          StorageError: a checkpoint could not be written.
        """
        try:
            self.wait()
        finally:
            self._let_go()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            return  # nobody wants to wait: a save under way is finished by its threads, or never counts
        if isinstance(error, StorageError):
            with contextlib.suppress(Exception):
                self._let_go()
        else:
            self.close()

    def _let_go(self) -> None:
        self._manager.close()
        if self._link is not None:
            self._link.unlink(missing_ok=True)
            self._link.parent.rmdir()
            self._link = None


def _check_digest(extra: dict[str, Any]) -> None:
    digest = extra.pop(DIGEST_KEY, None)
    if digest is not None and digest != json_digest(extra):
        raise ValueError("the record beside the arrays does not match its digest")


@functools.cache
def _keep_threads_quiet() -> None:
    """Drops what orbax and its threads print about a failed save or restore: the error is raised anyway."""
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    ours = re.compile("orbax|tensorstore|ocdbt", re.IGNORECASE)
    logging.getLogger("asyncio").addFilter(lambda record: not ours.search(record.getMessage()))
    hook = sys.unraisablehook

    def hook_without_late_callbacks(unraisable: Any) -> None:
        # Of reads and writes under way when the first of them failed, of event loops that could not be made.
        error, code = str(unraisable.exc_value), getattr(unraisable.object, "cr_code", None)
        is_late = error == "Event loop is closed" or "_ssock" in error
        if not is_late and "orbax" not in getattr(code, "co_filename", ""):
            hook(unraisable)

    sys.unraisablehook = hook_without_late_callbacks


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200].rstrip(": ")
