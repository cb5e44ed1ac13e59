"""The results table in a file of the user's, as the README's: straight from metrics/."""

from pathlib import Path

from pipeline.report.results import Study
from pipeline.report.tables import NOT_RUN, markdown_table
from stages.errors import UserError
from stages.params import Params

HEAD = "| method |"


def results_table(root: Path, params: Params) -> str:
    """The table in Markdown, ours marked with ◆.

    Raises:
        UserError: nothing of it has run.
    """
    study = Study(root, params)
    if not study.results:
        raise UserError(
            f"metrics/ holds no result of params.yaml (profile {params.profile}).\n"
            "  Make them with: make reproduce"
        )
    return markdown_table(study)


def write_table(path: Path, table: str) -> bool:
    """Put a table in the place of the one in a file; say whether that changed it.

    Raises:
        UserError: there is no such file or no such table in it, or what is to replace it is not
            whole.
    """
    if NOT_RUN in table:
        raise UserError(
            "the table has numbers that are not there yet (not run yet).\n"
            "  Make them with: make reproduce"
        )
    if not path.is_file():
        raise UserError(f"there is no file {path}.\n  Name one with a table to replace: README.md")
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith(HEAD)), None)
    if start is None:
        raise UserError(f"{path} has no table that begins with {HEAD!r}, so none can be replaced.")
    end = next((n for n in range(start, len(lines)) if not lines[n].startswith("|")), len(lines))
    new = [*lines[:start], *table.splitlines(), *lines[end:]]
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("\n".join(new) + "\n", encoding="utf-8")
    partial.replace(path)
    return new != lines
