"""Tables for a terminal of 80 columns, and the console they go to."""

from __future__ import annotations

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table

COLUMNS_MAX = 1 << 16


def new_console(*, stderr: bool = False) -> Console:
    """Return a console that reads nothing into the text it is given."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def new_table(title: str) -> Table:
    """Return an empty table with a plain head; cells are ``Text``, so that names are never read as markup."""
    return Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )


def show(renderable: RenderableType) -> None:
    """Print on standard output in as many columns as it takes, be the terminal wider or not.

    For what holds paths or digests: in two lines they can neither be copied nor searched for.
    """
    console = new_console()
    needed = Measurement.get(console, console.options.update(max_width=COLUMNS_MAX), renderable).maximum
    console.width = max(console.width, needed)
    console.print(renderable)
