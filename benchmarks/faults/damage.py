"""Flips, truncations and deletions in every file of a run, and what the commands then say."""

import dataclasses
import functools
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.commands import (
    Outcome,
    command,
    end_of,
    fresh,
    in_child,
    stopped_in_the_middle,
    train,
)

KINDS = ("flip", "truncate", "delete")
CHUNK = 10  # damages of a child
_COMPLAINTS = (
    r"damaged|missing|cut short|was changed|cannot be read|does not match|belongs to|hold a run|not those|"
    r"has not (ended|finished)|none were kept|has no checkpoint|is not empty"
)


def inject(folder: Path, kind: str, number: int) -> str:
    """Damages one file, chosen by the number; returns its path inside the folder."""
    chance = random.Random(f"{kind} {number}")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    # One in three hits what stands at the top, where there are few files and much is read.
    top = [path for path in files if path.parent == folder]
    path = chance.choice(top if number % 3 == 0 else files)
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    elif kind == "truncate":
        path.write_bytes(content[: chance.randrange(len(content))])
    else:
        path.unlink()
    return str(path.relative_to(folder))


def observe(folder: Path, other: Path, image: Path) -> dict[str, tuple[Outcome, Any]]:
    """Runs each command on a folder; returns its outcome, and what must be equal for it to be right."""
    seen: dict[str, tuple[Outcome, Any]] = {}
    page = folder.parent / "page.html"
    page.unlink(missing_ok=True)
    report = command("report", str(folder), "--out", str(page))
    html = page.read_text(encoding="utf-8") if page.exists() else ""
    words = re.sub(r"<(style|script|svg).*?</\1>|<[^>]*>", " ", html, flags=re.DOTALL)
    seen["report"] = Outcome(report.status, report.text + words), [report.status, report.text, html]
    for name, argv in (
        ("compare", ["compare", str(folder), str(other)]),
        ("predict", ["predict", str(folder), str(image)]),
    ):
        outcome = command(*argv)
        seen[name] = outcome, list(outcome)
    was_finished = (folder / "result.json").exists()
    outcome = train(folder, "--no-report")
    try:
        end = end_of(folder)
    except (OSError, ValueError, KeyError):
        end = {}
    last = outcome.text.splitlines()[-1:]
    is_repeated = bool(last) and last[0].startswith("finished before")
    seen["resume"] = outcome, [outcome.status, last if was_finished and is_repeated else None, end]
    return seen


def judge(expected: tuple[Outcome, Any], seen: tuple[Outcome, Any]) -> str:
    """Returns how a command took a damage: `equal`, `told`, `silent` or `traceback`."""
    outcome, value = seen
    if outcome.status is None or "Traceback (most recent call last)" in outcome.text:
        return "traceback"
    if value == expected[1]:
        return "equal"
    errors = [line for line in outcome.text.splitlines() if line.startswith("error: ")]
    if outcome.status and len(errors) == 1:
        return "told"
    # A report and a resumed run go on with what there is, and say what is not.
    new = Counter(re.findall(_COMPLAINTS, outcome.text)) - Counter(re.findall(_COMPLAINTS, expected[0].text))
    if new:
        return "told"
    # A result that was deleted is made again from the checkpoint: the same, but for its times.
    if value[0] == 0 == expected[1][0] and isinstance(value[-1], dict) and value[-1] == expected[1][-1]:
        return "equal"
    return "silent"


def _excerpt(text: str) -> str:
    """Returns the part of an output that tells most: around a traceback, else its end."""
    place = text.find("Traceback")
    return text[max(place - 300, 0) : place + 1200] if place >= 0 else text[-600:]


def campaign(place: Path, number: int, image: Path, other: Path) -> tuple[list[list[str]], list[str]]:
    """Injects `number` damages; returns the rows of a table, and a line for each that went wrong."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    wrong: list[str] = []
    for state, make in (("finished", _finish), ("stopped", stopped_in_the_middle)):
        trial = _Trial(place, state, other, image)
        in_child(functools.partial(make, trial.pristine))
        _, expected = in_child(trial.undamaged)
        todo = [(KINDS[n % 3], n) for n in range(number // 2)]
        while todo:
            trial.verdicts.unlink(missing_ok=True)
            ended, _ = in_child(functools.partial(trial.run, todo[:CHUNK], expected))
            lines = trial.verdicts.read_text(encoding="utf-8").splitlines() if trial.verdicts.exists() else []
            for (kind, n), line in zip(todo, lines, strict=False):
                victim, verdicts = json.loads(line)
                for name, (verdict, text) in verdicts.items():
                    counts.setdefault((state, kind), Counter())[verdict] += 1
                    if verdict in ("silent", "traceback"):
                        what = f"{name} of a {state} run after {kind} {n} of {victim}"
                        wrong.append(f"{verdict}: {what}: {text}")
            if len(lines) < min(CHUNK, len(todo)):
                kind, n = todo[len(lines)]
                wrong.append(f"crash: signal {ended} in a {state} run after {kind} {n}")
                counts.setdefault((state, kind), Counter())["crash"] += 1
                lines.append("")
            todo = todo[len(lines) :]
    names = ("equal", "told", "silent", "traceback", "crash")
    rows = [[f"{kind}, {state}", *(str(c[name]) for name in names)] for (state, kind), c in counts.items()]
    return [["damage of", "harmless", "told", "silently wrong", "traceback", "crash"], *rows], wrong


@dataclasses.dataclass(frozen=True)
class _Trial:
    """The damages of one run."""

    place: Path
    state: str
    other: Path
    image: Path

    @property
    def pristine(self) -> Path:
        return self.place / f"pristine-{self.state}"

    @property
    def verdicts(self) -> Path:
        return self.place / "verdicts.jsonl"

    def undamaged(self) -> Any:
        return observe(fresh(self.place / "damaged", self.pristine), self.other, self.image)

    def run(self, damages: Sequence[tuple[str, int]], expected: dict[str, Any]) -> None:
        for kind, n in damages:
            folder = fresh(self.place / "damaged", self.pristine)
            victim = inject(folder, kind, n)
            seen = json.loads(json.dumps(observe(folder, self.other, self.image)))
            verdicts = {}
            for name, (outcome, value) in seen.items():
                golden = Outcome(*expected[name][0]), expected[name][1]
                verdicts[name] = judge(golden, (Outcome(*outcome), value)), _excerpt(outcome[1])
            with self.verdicts.open("a", encoding="utf-8") as file:
                file.write(json.dumps([victim, verdicts]) + "\n")


def _finish(folder: Path) -> Any:
    return train(folder, "--no-report")
