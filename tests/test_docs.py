"""What README and the pages of docs/ name exists: paths, links, commands, modules; their experiments run."""

import dataclasses
import functools
import importlib
import inspect
import re
from pathlib import Path

import pytest

from dl.cli.main import RunOptions

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results.md"
PAGES = [
    README,
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "launch/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.ipynb")),
]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))
# Files that a reader is to write, and words that stand for a name.
WRITTEN_BY_THE_READER = {"fashion", "mine", "NAME"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def without_plans(text):
    """Leaves out what README marks as planned, in italics."""
    return re.sub(r"(?<!\*)\*[^*\n]+\*(?!\*)", "", text)


def prose_of(page):
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pages
def test_every_path_exists(page):
    text = without_plans(page.read_text(encoding="utf-8"))
    paths = re.findall(r"(?<![\w./])((?:dl|experiments|benchmarks|tests|launch)/[\w/]*(?:\.\w+)?)", text)
    missing = [
        path for path in paths if not (ROOT / path).exists() and Path(path).stem not in WRITTEN_BY_THE_READER
    ]
    assert not missing


def anchor_of(heading):
    """Returns the anchor that code hosts and MkDocs give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pages
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(anchor_of, headings), link


@pages
def test_every_command_exists(page, dl):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"python -m (?:experiments|benchmarks)\.(\w+)", text):
        found = [ROOT / folder / name for folder in ("experiments", "benchmarks")]
        assert name in WRITTEN_BY_THE_READER or any(
            path.with_suffix(".py").exists() or (path / "__main__.py").exists() for path in found
        ), name
    commands = re.findall(r"python -m dl ([a-z][\w-]+)", text)
    if commands:
        known = re.findall(r"^  ([a-z][\w-]*)\s", dl("--help")[1], re.MULTILINE)
        assert set(commands) <= set(known)


def commands_of(text):
    """Yields the name and the options of each command of an experiment, with lines that go on joined."""
    for name, rest in re.findall(r"python -m experiments\.(\w+)([^\n#`]*)", text.replace("\\\n", " ")):
        yield name, re.findall(r"(?<!\S)--([a-z][\w-]*)", rest)


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "experiments").glob("*.py"))], ids=lambda page: page.name
)
def test_every_option_of_a_command_exists(page):
    of_run = {field.name for field in dataclasses.fields(RunOptions)}
    for name, options in commands_of(page.read_text(encoding="utf-8")):
        if name not in WRITTEN_BY_THE_READER and options:
            experiment = importlib.import_module(f"experiments.{name}").experiment
            known = of_run | {*inspect.signature(experiment).parameters} | {"help", "version"}
            assert {option.replace("-", "_") for option in options} <= known, (name, options)


def resolves(name):
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:size]))
            functools.reduce(getattr, parts[size:], module)
        except (ImportError, AttributeError):
            continue
        return True
    return False


@pages
def test_every_name_of_the_package_exists(page):
    names = set(
        re.findall(r"(?<![\w./\"'])dl(?:\.[A-Za-z_]\w*)+", without_plans(page.read_text(encoding="utf-8")))
    )
    assert not [name for name in sorted(names) if not resolves(name)]


def rows_of(page):
    """Returns the results of a page: by command its percentages, as they stand in the columns behind it."""
    rows = re.findall(r"^\| `(python -m [^`]+)` \|(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {command: re.findall(r"\*\*[\d.]+ %\*\*|\([\d.]+ to [\d.]+\)", row) for command, row in rows}


def test_readme_and_the_page_of_results_state_the_same_numbers():
    in_readme, in_results = rows_of(README), rows_of(RESULTS)
    assert len(in_readme) >= 8
    assert {command: in_results.get(command) for command in in_readme} == in_readme


def test_readme_is_read_in_ten_minutes():
    assert len(README.read_text(encoding="utf-8").split()) <= 2200


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, ROOT / "docs" / "experiments.md"], ids=["README", "experiments"])
def test_an_experiment_that_is_copied_from_a_page_trains(page, tmp_path, monkeypatch, capsys):
    from dl import main

    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    [source] = [block for block in blocks if "def experiment(" in block]
    (tmp_path / "copied_experiment.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    experiment = importlib.import_module("copied_experiment").experiment
    monkeypatch.delitem(importlib.import_module("sys").modules, "copied_experiment")
    options = ["--dataset", "digits", "--batch-size", "16", "--num-epochs", "2", "--mesh", "data=1"]
    main(experiment, [*options, "--workdir", str(tmp_path / "run"), "--no-report"])
    assert "test_accuracy=" in capsys.readouterr().out


@pytest.mark.slow
def test_the_examples_on_the_page_of_explanations_run():
    text = (ROOT / "docs" / "explanations.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = {}
    exec("\n".join(blocks), names)  # their assertions are what the page says
    assert names["maps"].shape == (16, 8, 8)
    assert names["heat"].shape == (2, 8, 8)
    assert names["changed"].is_found.any()
