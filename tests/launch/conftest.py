"""Launchers in this process, and stand-ins for the programs that they call."""

import importlib
import json
import sys
from types import SimpleNamespace

import pytest

# Records its arguments, and plays the first answer whose words all occur in them, as often as it says. The
# states of a queued resource come one after the other; the last one stays.
STAND_IN = """#!{python} -IS
import fcntl, json, os, pathlib, sys
folder = pathlib.Path({folder!r})
argv = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
with open(folder / "lock", "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with open(folder / "calls", "a") as calls:
        calls.write(json.dumps(argv) + "\\n")
    script = json.loads((folder / "script").read_text())
    line = " ".join(argv)
    for answer in script["answers"]:
        if answer["times"] and all(word in line for word in answer["words"]):
            answer["times"] -= 1
            break
    else:
        answer = {{"status": 0, "out": "", "err": ""}}
        if "describe" in argv:
            states = script["states"]
            state = states.pop(0) if len(states) > 1 else states[0]
            answer["out"] = json.dumps({{"state": state}})
    (folder / "script").write_text(json.dumps(script))
print(answer["out"])
print(answer["err"], file=sys.stderr)
sys.exit(answer["status"])
"""


class Programs:
    """Stand-ins for gcloud and others: what they answer, and what they were called with."""

    def __init__(self, folder):
        self.folder = folder
        self.answers, self.states = [], [{"state": "ACTIVE"}]
        self._save()

    def _save(self):
        (self.folder / "script").write_text(json.dumps({"answers": self.answers, "states": self.states}))

    def answer(self, *words, status=1, out="", err="", times=1):
        """Plays an answer to the next calls whose arguments contain some words."""
        self.answers.append({"words": words, "status": status, "out": out, "err": err, "times": times})
        self._save()

    def set_states(self, *states):
        """Sets the states of the queued resource: names, or whole descriptions."""
        self.states = [state if isinstance(state, dict) else {"state": state} for state in states]
        self._save()

    @property
    def calls(self):
        """The arguments of all calls so far."""
        calls = self.folder / "calls"
        return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    def verbs(self):
        """The verbs of the calls of queued-resources, without questions about the state."""
        verbs = [call[4] for call in self.calls if call[1:4] == ["compute", "tpus", "queued-resources"]]
        return [verb for verb in verbs if verb != "describe"]


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Stand-ins for all programs of launchers, first on PATH."""
    folder, binaries = tmp_path / "stand-ins", tmp_path / "bin"
    folder.mkdir()
    binaries.mkdir()
    for name in ("gcloud", "sbatch", "srun", "scontrol", "kubectl", "docker"):
        (binaries / name).write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:/usr/bin:/bin")
    return Programs(folder)


@pytest.fixture
def launch(capsys, monkeypatch):
    """Runs `python -m launch.NAME ARGUMENTS` in this process; returns its status, output and errors."""
    from launch.cli import run_as_command

    def run(name, *argv):
        monkeypatch.setattr(sys, "argv", [name, *argv])
        with pytest.raises(SystemExit) as exit_:
            run_as_command(importlib.import_module(f"launch.{name}").main)
        printed = capsys.readouterr()
        return SimpleNamespace(status=exit_.value.code or 0, out=printed.out, err=printed.err)

    return run
