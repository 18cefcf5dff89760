"""Pages of the site that are not files of docs/: the API reference, and the texts that lie beside README.

A hook of MkDocs (`hooks:` in mkdocs.yml). The reference has a page for each room and each file at the top of
`dl/`, so a module that is added or moved needs no line here. On a code host links such as `../SECURITY.md`
lead out of docs/; in the site they lead to a page of that name.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
BESIDE = {  # by the page's name in the site
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "SECURITY.md": "SECURITY.md",
    "launch.md": "launch/README.md",
}
# What an experiment is written in comes first.
FIRST = ("experiment", "task", "losses", "metrics", "optimizers", "schedules", "data", "models", "methods")


def modules() -> Iterator[str]:
    """Yields the names of the rooms and words of `dl`, those of an experiment first."""
    names = {
        path.stem
        for path in (ROOT / "dl").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    names = {name for name in names if not name.startswith("_")}
    yield from (name for name in FIRST if name in names)
    yield from sorted(names - set(FIRST))


def on_config(config: Any) -> Any:
    """Adds the reference to the navigation."""
    pages = [{"dl": "reference/dl.md"}, *({f"dl.{name}": f"reference/{name}.md"} for name in modules())]
    config.nav.append({"API reference": pages})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages."""
    files.remove(files.get_file_from_path(Path(__file__).name))
    files.append(File.generated(config, "reference/dl.md", content=_reference("dl", shows_submodules=False)))
    for name in modules():
        files.append(File.generated(config, f"reference/{name}.md", content=_reference(f"dl.{name}")))
    for page, path in BESIDE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turns links out of docs/, and links of a text beside README into docs/, to pages of the site."""
    for name, path in BESIDE.items():
        markdown = markdown.replace(f"](../{path})", f"]({name})").replace(f"]({path})", f"]({name})")
    if page.file.src_uri in BESIDE:
        markdown = re.sub(r"\]\((?:\.\./)?docs/", "](", markdown)
        markdown = re.sub(r"\]\((?:\.\./)?README\.md", "](index.md", markdown)
    return markdown


def _reference(module: str, *, shows_submodules: bool = True) -> str:
    options = "" if shows_submodules else "    options:\n      show_submodules: false\n"
    return f"# {module}\n\n::: {module}\n{options}"
