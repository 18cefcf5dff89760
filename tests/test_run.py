"""The folder of a run: the command that goes on with it."""

import sys
from pathlib import Path

import pytest

from dl.run import Run, this_command


@pytest.mark.parametrize("given", [[], ["--workdir", "a b/run"], ["--workdir=a b/run"]])
def test_the_command_that_goes_on_has_the_folder_once(monkeypatch, given):
    monkeypatch.setattr(sys, "argv", ["x.py", *given, "--name", "a b/run", "--num-epochs=3"])
    run = Run(Path("a b/run"), "experiments.x", {})
    # A value of another option stays, also one that is spelled as the folder is.
    words = "--name 'a b/run' --num-epochs=3 --workdir 'a b/run'"
    assert run.resume_command == f"python -m experiments.x {words}"
    assert this_command("dl", run.folder) == f"python -m dl {words}"
