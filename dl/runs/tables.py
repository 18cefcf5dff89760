"""Tables of text for the terminal, Markdown and LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable
from rich.text import Text

_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "…": r"\dots{}",
    }
)


@dataclass(frozen=True)
class Table:
    """Rows of text under a header. Every row is as long as the header."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_rich(self) -> RichTable:
        table = RichTable(title=Text(self.title), title_justify="left")
        for number, name in enumerate(self.header):
            # A cell must not be truncated; the terminal folds it.
            table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def to_markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

        rule = "|" + "|".join(["---"] + ["---:"] * (len(self.header) - 1)) + "|"
        return "\n".join([f"**{self.title}**", "", line(self.header), rule, *map(line, self.rows)])

    def to_latex(self) -> str:
        """Returns a `tabular` with plain rules, which does not need a LaTeX package."""

        def line(cells: Sequence[str]) -> str:
            return " & ".join(" ".join(cell.translate(_LATEX).split()) for cell in cells) + r" \\"

        columns = "l" + "r" * (len(self.header) - 1)
        return "\n".join(
            [
                f"% {' '.join(self.title.split())}",
                rf"\begin{{tabular}}{{{columns}}}",
                *(r"\hline", line(self.header), r"\hline", *map(line, self.rows), r"\hline"),
                r"\end{tabular}",
            ]
        )
