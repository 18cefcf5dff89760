"""A command of `python -m dl`, and the parsing of its words.

A command line is `python -m dl COMMAND WORDS OPTIONS`. The words name experiments, runs or files and stand
before the options; the options begin with a minus sign.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from dl.cli.options import VERSION, parse
from dl.errors import UserError
from dl.experiment import Experiment
from dl.option_types import Options
from dl.runs.console import Console
from dl.runs.definition import Definition
from dl.runs.find import find_experiment

HELP = ("-h", "--help")
EXPERIMENT = "EXPERIMENT"
MORE = " …"  # ends the last word where it may be given several times
OPTIONAL = "["  # begins the last word where it may be left out
LEGEND = {
    EXPERIMENT: "the NAME of a file experiments/NAME.py, or the path of any Python file that defines an "
    "experiment",
    "NAME=VALUES": "an option and its values, such as learning_rate=log:1e-4:1e-1",
    "RUN": "the folder of a run",
    "INPUT": "an image file, a folder of images, or a text in quotes",
    "FOLDER": "a new folder",
    "TEXT": "a text file of UTF-8, or a folder of files .txt",
    "PROMPT": "the beginning of a text, or a text to translate",
}


def no_experiment() -> None:
    """The function of an experiment for commands that do not take an experiment. It has no options."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One command line, parsed.

    Attributes:
      words: the words before the options, without the experiment.
      own: the options of the command.
      argv: all words after `python -m dl`.
      experiment_fn: the function of the experiment; `no_experiment` where the command takes none.
      options: all options of the experiment.
    """

    words: tuple[str, ...]
    own: Any
    argv: tuple[str, ...]
    experiment_fn: Callable[..., Any]
    options: Options

    def build(self) -> Experiment:
        """Returns the experiment, and shows what its user must know about the data."""
        experiment = Definition(self.experiment_fn, self.options).build()
        Console().notice(experiment.data.notice)
        return experiment


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of `python -m dl`.

    Attributes:
      name: the name of the command.
      words: the names of the words before the options. The last may end in ` …`, and stands in brackets
        where it may be left out.
      run: runs a call and returns the exit status. Its docstring is the text of `python -m dl NAME --help`.
      options: a dataclass with a default for each field.
      help: its line in `python -m dl --help`.
    """

    name: str
    words: tuple[str, ...]
    run: Callable[[Call], int]
    options: type
    help: str

    @property
    def usage(self) -> str:
        """What is typed after `python -m dl`, without the options."""
        return " ".join((self.name, *self.words))

    @property
    def takes_experiment(self) -> bool:
        return self.words[:1] == (EXPERIMENT,)

    def parse(self, argv: Sequence[str]) -> Call:
        """Parses the words after the name of the command.

        Raises:
          UserError: too few words or too many, or a mistake in an option.
          SystemExit: with status 0, after the help text or the version was printed.
        """
        # After -- every word is a word, and so is a text that begins with a dash.
        place = argv.index("--") if "--" in argv else len(argv)
        words = tuple(itertools.takewhile(lambda word: word[:1] != "-" or " " in word, argv[:place]))
        rest, words = argv[len(words) : place], (*words, *argv[place + 1 :])
        about = " ".join((inspect.getdoc(self.run) or "").split())
        is_question = bool(rest) and rest[0] in (*HELP, *VERSION)
        if self.takes_experiment and not words and not is_question:
            self._refuse(0)
        experiment_fn: Callable[..., Any] = no_experiment
        shown = self.usage
        if self.takes_experiment and words:
            experiment_fn = find_experiment(words[0])
            shown = self.usage.replace(EXPERIMENT, words[0])
        options, own = parse(experiment_fn, self.options, rest, f"python -m dl {shown}", about)
        if len(words) < sum(not word.startswith(OPTIONAL) for word in self.words):
            self._refuse(len(words), " before the options" if rest else "")
        if len(words) > len(self.words) and not self.usage.rstrip("]").endswith(MORE):
            raise UserError(
                f"{self.name} does not take the word {words[len(self.words)]!r}; write python -m dl "
                f"{self.usage}, and the options as --name value"
            )
        words = words[self.takes_experiment :]
        return Call(words, own, (self.name, *argv), experiment_fn, options)

    def _refuse(self, number: int, where: str = "") -> None:
        """Raises UserError about the word that is missing."""
        word = self.words[number].removesuffix(MORE)
        meaning = LEGEND.get(word, LEGEND.get(word.partition("_")[0], ""))
        raise UserError(f"{self.name} needs {word} ({meaning}){where}; write python -m dl {self.usage}")
