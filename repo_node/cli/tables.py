"""Tables for a terminal of 80 columns, and the console they go to."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table


def new_console(*, stderr: bool = False) -> Console:
    """Return a console that reads nothing into the text it is given."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def new_table(title: str) -> Table:
    """Return an empty table with a plain head; cells are ``Text``, so that names are never read as markup."""
    return Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
