"""`python -m dl COMMAND …`: the table of all commands, from which dispatch and help follow."""

import sys
import textwrap
from collections.abc import Sequence

from dl.cli import (
    baseline_command,
    compress_command,
    data_commands,
    experiment_commands,
    explain_command,
    export_command,
    generate_command,
    plan_command,
    run_commands,
    score_command,
    simplify_command,
    study_commands,
)
from dl.cli.command import EXPERIMENT, HELP, LEGEND, Call, Command
from dl.cli.exit_status import end, exit_status
from dl.cli.options import VERSION, CommandOptions, ComputeOptions, NoOptions, version_line
from dl.cli.process import set_up_process
from dl.data.tfds.folders import using_data_dir
from dl.errors import UserError
from dl.runs.find import hint, known_experiments
from dl.system.text import printable

_OF_TRAINING = ("train", "run", "fit", "start")  # the command that trains, in other projects


def list_experiments(call: Call) -> int:
    """Lists the experiments, each with the first line of its description."""
    known = known_experiments()
    width = max(map(len, known), default=0)
    for name, about in known.items():
        print(f"{name:<{width}}  {printable(about)}".rstrip())
    return 0


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "summary",
            (EXPERIMENT,),
            experiment_commands.summary,
            CommandOptions,
            "table of layers: shapes, parameters, FLOPs",
        ),
        Command(
            "overfit",
            (EXPERIMENT,),
            experiment_commands.check_overfit,
            experiment_commands.OverfitOptions,
            "test whether the model can learn one batch",
        ),
        Command(
            "lr-find",
            (EXPERIMENT,),
            experiment_commands.find_rate,
            experiment_commands.RateOptions,
            "learning-rate range test",
        ),
        Command(
            "augment-preview",
            (EXPERIMENT,),
            experiment_commands.preview_augmentation,
            experiment_commands.PreviewOptions,
            "picture of examples before and after augmenting",
        ),
        Command(
            "plan",
            (EXPERIMENT,),
            plan_command.plan_step,
            plan_command.PlanOptions,
            "memory, time and price on other devices",
        ),
        Command(
            "baseline",
            (EXPERIMENT,),
            baseline_command.baseline,
            baseline_command.BaselineOptions,
            "classical models on the same splits",
        ),
        Command(
            "sweep",
            (EXPERIMENT, "NAME=VALUES …"),
            study_commands.run_sweep,
            study_commands.SweepOptions,
            "best hyperparameters on the validation split",
        ),
        Command(
            "learning-curve",
            (EXPERIMENT,),
            study_commands.run_curve,
            study_commands.CurveOptions,
            "error against number of examples or parameters",
        ),
        Command(
            "report",
            ("RUN",),
            run_commands.report,
            run_commands.ReportOptions,
            "HTML report of a run",
        ),
        Command(
            "predict",
            ("RUN", "INPUT …"),
            run_commands.predict,
            run_commands.PredictOptions,
            "classes of images or texts, with probabilities",
        ),
        Command(
            "explain",
            ("RUN", "[INPUT …]"),
            explain_command.explain,
            explain_command.ExplainOptions,
            "what one prediction of a classifier rests on",
        ),
        Command(
            "simplify",
            ("RUN",),
            simplify_command.simplify,
            simplify_command.SimplifyOptions,
            "tree and linear model that imitate a classifier",
        ),
        Command(
            "generate",
            ("RUN", "PROMPT …"),
            generate_command.generate,
            generate_command.GenerateOptions,
            "text of a language model",
        ),
        Command(
            "compress",
            ("RUN",),
            compress_command.compress,
            compress_command.CompressOptions,
            "smaller or faster model of a finished run",
        ),
        Command(
            "export",
            ("RUN",),
            export_command.export,
            export_command.ExportOptions,
            "model in a folder that needs only JAX",
        ),
        Command(
            "score",
            ("RUN",),
            score_command.score,
            score_command.ScoreOptions,
            "BLEU and chrF of a translation model",
        ),
        Command(
            "compare",
            ("RUN_A", "RUN_B …"),
            run_commands.compare,
            run_commands.CompareOptions,
            "differences between runs, with paired tests",
        ),
        Command(
            "robustness",
            ("RUN",),
            run_commands.robustness,
            run_commands.RobustnessOptions,
            "accuracy on corrupted images",
        ),
        Command(
            "write-tokens",
            ("FOLDER", "TEXT …"),
            data_commands.tokenize,
            data_commands.TokenOptions,
            "token files from texts larger than memory",
        ),
        Command("list", (), list_experiments, NoOptions, "names of the experiments"),
    )
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its status; with 2 and one line on a user's mistake."""
    words = sys.argv[1:] if argv is None else argv
    end(exit_status(lambda: _run(words)))


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in HELP:
        print(_help())
        return 0 if argv else 2
    if argv[0] in VERSION:
        print(version_line())
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise UserError(f"there is no command {name}; {_instead_of(name, rest)}")
    command = COMMANDS[name]
    call = command.parse(rest)
    if isinstance(call.own, ComputeOptions):
        set_up_process(call.own)
    with using_data_dir(call.own.data_dir if isinstance(call.own, CommandOptions) else None):
        return command.run(call)


def _instead_of(name: str, rest: Sequence[str]) -> str:
    """Returns what to type in place of a word that is not a command."""
    known = known_experiments()
    if name in _OF_TRAINING:
        experiment = next((word.removeprefix("experiments.") for word in rest), "")
        return f"to train, type python -m experiments.{experiment if experiment in known else 'NAME'}"
    if name.removeprefix("experiments.") in known:
        return f"to train, type python -m experiments.{name.removeprefix('experiments.')}"
    return hint(name, list(COMMANDS))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 82, subsequent_indent="  ")


def _help() -> str:
    width = max(len(command.usage) for command in COMMANDS.values())
    return "\n".join(
        [
            "usage: python -m dl COMMAND [options]",
            "",
            *(f"  {command.usage:<{width}}  {command.help}" for command in COMMANDS.values()),
            "",
            *(_wrapped(f"{word}: {meaning}.") for word, meaning in LEGEND.items()),
            "",
            "python -m dl COMMAND --help             lists the options of a command.",
            "python -m dl COMMAND EXPERIMENT --help  lists the options of both.",
            "python -m experiments.NAME              trains an experiment.",
            "python -m dl --version                  prints the versions of dl, JAX and Python.",
        ]
    )
