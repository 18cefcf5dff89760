"""The command line of an experiment, made from its signature: names, types, defaults, ranges and help."""

import contextlib
import dataclasses
import difflib
import enum
import inspect
import io
import itertools
import platform
import re
import sys
import typing
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import docstring_parser
import numpy as np
import tyro

from dl.errors import UserError
from dl.option_types import Options, check_value, flag, help_of, type_name
from dl.system.files import expand

VERSION = ("-V", "--version")
YIELDS = {"yields": True}  # metadata of a run option that an experiment's own option replaces


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """A command without options."""


@dataclasses.dataclass(frozen=True)
class CommandOptions:
    """Options of whatever reads data.

    Attributes:
      data_dir: Folder of prepared data sets, on a disk or gs://BUCKET/FOLDER. Default: $TFDS_DATA_DIR, else
        ~/tensorflow_datasets.
    """

    data_dir: Path | None = None


@dataclasses.dataclass(frozen=True)
class ComputeOptions(CommandOptions):
    """Options of whatever trains or evaluates a model. None of them changes a result.

    Attributes:
      keep_memory: Keep freed memory for the next step, in place of giving it back to the system. Steps on a
        CPU are faster, and take more memory. This works with glibc only.
      compilation_cache: Keep compiled programs for the next run, in $JAX_COMPILATION_CACHE_DIR, else in
        ~/.cache/dl.
    """

    keep_memory: bool = dataclasses.field(default=True, metadata=YIELDS)
    compilation_cache: bool = dataclasses.field(default=True, metadata=YIELDS)


@dataclasses.dataclass(frozen=True)
class StudyOptions(ComputeOptions):
    """Options of whatever trains.

    Attributes:
      workdir: Folder of the study and its runs. If the folder holds a study, that study is resumed. Default:
        a new folder, runs/NAME-TIME.
      mesh: How arrays are split over devices: data=8 splits each batch over eight devices; data=-1 uses all
        devices. See docs/devices.md. Default: data=-1.
    """

    workdir: Path | None = None
    mesh: str | None = None


def version_line() -> str:
    """Returns the versions that decide what a run computes."""
    return f"dl {version('dl')}, jax {version('jax')}, Python {platform.python_version()}"


def parse(
    experiment_fn: Callable[..., Any],
    run_options: type,
    argv: Sequence[str] | None,
    prog: str,
    description: str | None = None,
) -> tuple[Options, Any]:
    """Returns the experiment's options and the run's, from the arguments of a command line.

    Args:
      experiment_fn: its keyword arguments with annotations and defaults are options. The help text of each is
        what the docstring says of it, else what its type says (`option_types.Help`).
      run_options: a dataclass whose fields are options too.
      argv: the arguments, without the name of the program. `None` means those of this process.
      prog: the name of the program, for the help text.
      description: the beginning of the help text; the docstring of the experiment's module if None.

    Raises:
      UserError: an unknown option, a value of the wrong type or out of its range.
      SystemExit: with status 0, after the help text or the version was printed.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not set(VERSION).isdisjoint(argv):
        print(version_line())
        sys.exit(0)
    of_experiment = _fields(
        {name: parameter.default for name, parameter in inspect.signature(experiment_fn).parameters.items()},
        experiment_fn,
    )
    own = {name for name, _, _ in of_experiment}
    fields = [f for f in dataclasses.fields(run_options) if not (f.name in own and f.metadata.get("yields"))]
    of_run = _fields({f.name: f.default for f in fields}, run_options)
    if twice := own & {name for name, _, _ in of_run}:
        raise UserError(
            f"the option {twice.pop()} of the experiment has the name of an option of every run; choose "
            "another name"
        )
    both = dataclasses.make_dataclass(
        "Options",
        [
            (name, kind, dataclasses.field(default=default))
            for name, kind, default in (*of_experiment, *of_run)
        ],
    )
    if description is None:
        summary = docstring_parser.parse(inspect.getdoc(inspect.getmodule(experiment_fn)) or "")
        description = summary.short_description or ""
    values: Options = {name: _expanded(v) for name, v in vars(_parse(both, argv, prog, description)).items()}
    for name, kind, _ in (*of_experiment, *of_run):
        check_value(name, kind, values[name])
    return (
        {name: values[name] for name, _, _ in of_experiment},
        run_options(**{name: values[name] for name, _, _ in of_run}),
    )


def _expanded(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_expanded, value))
    return expand(value) if isinstance(value, Path) else value


def parse_value(experiment_fn: Callable[..., Any], name: str, text: str) -> Any:
    """Returns the value that a text means for one option of an experiment.

    Raises:
      UserError: as `parse`.
    """
    parameter = inspect.signature(experiment_fn).parameters.get(name)
    if parameter is not None and isinstance(parameter.default, bool):  # a flag, which takes no value
        if text not in ("True", "False"):
            raise UserError(f"{flag(name)} {text!r} is not understood; it must be True or False")
        return text == "True"
    values, _ = parse(experiment_fn, NoOptions, [f"{flag(name)}={text}"], "")
    return values[name]


def to_words(name: str, value: Any, is_flag: bool = True) -> list[str]:
    """Returns the words of a command line that give an option a value; `parse` reads them back.

    Args:
      name: the name of the option, such as `batch_size`.
      value: as the experiment takes it.
      is_flag: whether the option is a plain `bool`, which takes no value; not of `bool | None`.
    """
    own = flag(name)
    if isinstance(value, bool) and is_flag:
        return [own if value else f"--no-{own[2:]}"]
    if not isinstance(value, list | tuple):
        return [f"{own}={_word(value)}"]
    words = [_word(item) for item in _leaves(value)]
    if not words:
        return [own]
    first, *rest = words
    # A minus sign in a word of its own would begin another option.
    return [f"{own}={first}", *rest] if first.startswith("-") else [own, first, *rest]


def _leaves(value: Any) -> list[Any]:
    """Returns the items of tuples within tuples, as the command line takes them one after the other."""
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list | tuple) else [value]


def _word(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return value.name
    return str(value.item() if isinstance(value, np.generic) else value)


def named(argv: Sequence[str]) -> set[str]:
    """Returns the options that the arguments of a command line name, such as `batch_size`."""
    return {word.partition("=")[0].strip("-").replace("-", "_") for word in argv if word.startswith("-")}


def _fields(defaults: dict[str, Any], documented: Any) -> list[tuple[str, Any, Any]]:
    """Returns (name, annotation with help, default) of each option."""
    kinds = typing.get_type_hints(documented, include_extras=True)
    classes = reversed(inspect.getmro(documented)) if inspect.isclass(documented) else (documented,)
    texts = [docstring_parser.parse(inspect.getdoc(described) or "") for described in classes]
    help_texts = {p.arg_name: " ".join((p.description or "").split()) for t in texts for p in t.params}
    for name, default in defaults.items():
        lacks = [("an annotation", name not in kinds), ("a default", default is inspect.Parameter.empty)]
        if missing := [what for what, is_missing in lacks if is_missing]:
            raise UserError(f"the option {name} of the experiment lacks {' and '.join(missing)}; add it")
    texts_shown = {name: help_texts.get(name) or help_of(kinds[name]) for name in defaults}
    return [
        (name, Annotated[kinds[name], _help_of(texts_shown[name], kinds[name])], default)
        for name, default in defaults.items()
    ]


def _help_of(text: str, kind: Any) -> Any:
    hint = "" if "Default:" in text else None  # in place of (default: None)
    return tyro.conf.arg(help=text, help_behavior_hint=hint, metavar=_metavar(kind))


def _metavar(kind: Any) -> str | None:
    """Returns how help shows a value of `int | None` and the like, without None; `None` leaves it to tyro."""
    kinds = typing.get_args(kind)
    if len(kinds) != 2 or kinds[1] is not type(None):
        return None
    [inner, _] = kinds
    while typing.get_origin(inner) is Annotated:
        inner = inner.__origin__
    if typing.get_origin(inner) is Literal:
        return "{" + ",".join(map(str, typing.get_args(inner))) + "}"
    return inner.__name__.upper() if inner in (int, float, str, Path) else None


def _parse(options: type, argv: Sequence[str], prog: str, description: str) -> object:
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed: tuple[object, list[str]] = tyro.cli(
                options, args=argv, prog=prog, description=description, return_unknown_args=True
            )
    except SystemExit as exit_:
        if not exit_.code:
            raise
        raise UserError(_one_line(errors.getvalue(), options)) from None
    values, unknown = parsed
    if unknown:
        raise UserError(_unknown(unknown, [f.name for f in dataclasses.fields(options)]))
    return values


def _unknown(unknown: Sequence[str], names: Sequence[str]) -> str:
    flags = [word for word in unknown if word.startswith("-")]
    if not flags:
        return f"unexpected argument {unknown[0]!r}; options are written --name value"
    given = flags[0].partition("=")[0]
    word = given.strip("-").replace("-", "_").lower()
    initials = {"".join(part[0] for part in name.split("_")): name for name in names}
    near = [initials[word]] if word in initials else difflib.get_close_matches(word, names, 1, 0.6)
    hint = f"did you mean {flag(near[0])}?" if near else "--help lists all options"
    return f"there is no option {given}; {hint}"


def _one_line(box: str, options: type) -> str:
    """Returns what tyro's error box says as one line of our own words, where it is understood."""
    # The title, the error, a rule, hints; where a box cannot be shown, a rule follows the title too.
    lines = itertools.dropwhile(_is_rule, box.splitlines()[1:])
    error = itertools.takewhile(lambda line: not _is_rule(line), lines)
    text = " ".join(re.sub(r"[│╭╮╰╯]", " ", line).strip() for line in error)
    text = re.sub(r"\s+", " ", text).strip()
    kinds = {flag(field.name): field.type for field in dataclasses.fields(options)}
    for pattern in (
        r"Error parsing (?P<flag>--[\w-]+):.*?(?P<value>'.*')",
        r"invalid choice (?P<value>'.*') for argument '(?P<flag>--[\w-]+)'",
    ):
        if wrong := re.match(pattern, text):
            must = type_name(kinds.get(wrong["flag"]))
            return f"{wrong['flag']} {wrong['value']} is not understood; it must be {must}"
    if missing := re.match(r"Missing value for argument '(--[\w-]+)'", text):
        return f"'{missing[1]}' needs a value; write {missing[1]} VALUE"
    return f"{text}; --help lists all options"


def _is_rule(line: str) -> bool:
    return "──" in line or re.fullmatch(r"\s*-{3,}\s*", line) is not None
