"""The command `export`: writes the model of a run to a folder that needs neither `dl` nor its experiment."""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Literal

from dl.cli.command import Call
from dl.cli.options import CommandOptions
from dl.cli.run_commands import rebuild_for_use
from dl.errors import UserError
from dl.experiment import variable_shapes
from dl.sharding import make_mesh
from dl.system.bucket import url_of
from dl.system.files import named_path
from dl.system.text import printable


@dataclasses.dataclass(frozen=True)
class ExportOptions(CommandOptions):
    """Options of `export`.

    Attributes:
      out: New folder of the exported model. Default: the folder of the run with -export at its end. For a
        run in a bucket, that name in the working directory.
      platforms: Platforms that the model is lowered for: cpu, cuda, rocm or tpu. None of them need be on this
        machine.
      experiment: Name or path of the experiment. You need it only if dl cannot find the file that the run
        used. Default: the experiment named in the run.
    """

    out: Path | None = None
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda", "tpu")
    experiment: str | None = None


def export(call: Call) -> int:
    """Exports the model of a run: its functions for any batch size, its variables, a reader and a self-test.

    The reader needs only JAX, NumPy and flatbuffers. In place of a run, give the folder of an exported model
    to export it again with this version of JAX. The training data are not needed.
    """
    from dl.inference.export import export_model, variables_of  # the loop, orbax
    from dl.training.result import Result

    options: ExportOptions = call.own
    folder = named_path(call.words[0])
    if not options.platforms:
        raise UserError("--platforms names no platform; give at least one of cpu, cuda, rocm and tpu")
    name = f"{folder.resolve().name}-export"
    out = options.out or (Path(name) if url_of(call.words[0]) else folder.with_name(name))
    rebuilt = rebuild_for_use(folder, options.experiment)
    with contextlib.redirect_stdout(sys.stderr):
        variables = None
        if (folder / "export.json").exists():
            variables = variables_of(folder, variable_shapes(rebuilt.experiment))
        result = Result(
            rebuilt.experiment,
            rebuilt.run.result or {},
            run=rebuilt.run,
            mesh=make_mesh(),
            variables=variables,
        )
        model = export_model(result, out, tuple(dict.fromkeys(options.platforms)))
    print(f"wrote {printable(model.folder)}: {', '.join(model.record['functions'])}")
    return 0
