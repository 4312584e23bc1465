"""What a newcomer runs first: `feast-dynamo init`, and `feast-dynamo docs` for what to read."""

from __future__ import annotations

import difflib
import re
import runpy
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from feast_dynamo_ext.cli.repo import Output, json_option
from feast_dynamo_ext.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

TEMPLATE = Path(__file__).with_name("template")
TEMPLATE_OF_TABLE = Path(__file__).with_name("template_table")
SUFFIX = ".template"

# What Feast takes for a project and DynamoDB for the beginning of a table's name.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")

# In an installation the pages are part of the package; in a checkout they are beside it.
PACKAGE = Path(__file__).parents[1]
DOCS = (PACKAGE / "docs", PACKAGE.parent / "docs")

# In the order of a reader's needs.
FOLDERS = (
    "index",
    "tutorial",
    "how-to",
    "troubleshooting",
    "glossary",
    "reference",
    "explanation",
)
MOST_SHOWN = 3

NEXT = (
    "feast-dynamo local up",
    'eval "$(feast-dynamo local env)"',
    "feast apply",
    "feast-dynamo materialize --all",
    "python read.py",
    "feast-dynamo training-set build repurchase",
    "feast-dynamo local down",
)

NEXT_OF_TABLE = (
    "feast-dynamo local up",
    'eval "$(feast-dynamo local env)"',
    "python application.py",
    "feast apply",
    "feast-dynamo refresh",
    "python read.py",
    "feast-dynamo local down",
)


@click.command(short_help="Make a small feature repo that runs at once.")
@click.argument("name")
@click.option(
    "--from-table",
    is_flag=True,
    help="Begin with a DynamoDB table of an application, and go on to a model.",
)
@json_option
def init(name: str, output: Output, *, from_table: bool) -> None:
    """Make a small feature repo in a new folder NAME, which is its project too.

    It has one view of a made-up shop's customers with 90 days of history, a script that reads
    features, and the declaration of a training set. It runs at once on the embedded AWS, without
    an account or a bucket; the commands for that are printed. Make it yours by changing
    definitions.py.

    With --from-table it begins with an application that has its orders in DynamoDB: the table is
    captured, and features, a training set and a model are made of it by one command.

    \b
    feast-dynamo init shop
    feast-dynamo init shop --from-table
    """  # noqa: D301 - click keeps the lines after \b as they are
    folder = Path(name)
    _check_name(folder)
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"{folder} is there already. Choose another name.") from error
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}.") from error
    try:
        template = TEMPLATE_OF_TABLE if from_table else TEMPLATE
        for source in sorted(template.rglob(f"*{SUFFIX}")):
            text = source.read_text(encoding="utf-8").replace("{project}", folder.name)
            made = folder / str(source.relative_to(template)).removesuffix(SUFFIX)
            made.parent.mkdir(exist_ok=True)
            made.write_text(text, encoding="utf-8")
        if not from_table:
            runpy.run_path(str(folder / "history.py"), run_name="__main__")
    except OSError as error:
        shutil.rmtree(folder)
        raise ConfigError(f"{folder} cannot be written: {error}.") from error
    files = sorted(path.name for path in folder.iterdir())
    commands = NEXT_OF_TABLE if from_table else NEXT
    steps = "\n".join(f"  {step}" for step in (f"cd {shlex.quote(str(folder))}", *commands))
    output.show(
        {"folder": str(folder), "files": files},
        f"{folder} is a feature repo: {', '.join(files)}.\nTo run it on an AWS in this machine:\n"
        f"\n{steps}\n\nEach other terminal needs the line with `eval` too.\n"
        "The pages to read: feast-dynamo docs",
    )


def _check_name(folder: Path) -> None:
    """Refuse what cannot be the name of a project.

    Raises:
        ConfigError: it cannot.
    """
    name = folder.absolute().name
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"`{name}` cannot be a project's name. Use letters from a to z, digits, underscores "
            "and hyphens, with a letter or digit first."
        )


@click.command(short_help="List the pages of the documentation, or print one.")
@click.argument("page", required=False)
@json_option
def docs(page: str | None, output: Output) -> None:
    """Print a page of this version's documentation, as Markdown; without PAGE, list the pages.

    A page's last word does for its name.

    \b
    feast-dynamo docs
    feast-dynamo docs quickstart
    feast-dynamo docs reference/iam
    """  # noqa: D301 - click keeps the lines after \b as they are
    pages = _pages()
    titles = {name: _title(path) for name, path in pages.items()}
    if page is None:
        output.show(titles, _list(titles))
        return
    wanted = page.removeprefix("docs/").removesuffix(".md").lower()
    found = [name for name in pages if name.rpartition("/")[2] == wanted]
    if wanted in pages:
        found = [wanted]
    if not found:
        nearest = _nearest(wanted, pages)
        if not nearest:
            output.note(f"{_list(titles)}\n")
            raise ConfigError(f"There is no page `{page}`. Above are the pages that there are.")
        raise ConfigError(f"There is no page `{page}`. {nearest} `feast-dynamo docs` lists all.")
    text = pages[found[0]].read_text(encoding="utf-8")
    output.show({"page": found[0], "text": text}, text.rstrip("\n"))


def _pages() -> dict[str, Path]:
    """The pages by name, for example `reference/iam`."""
    folder = next(folder for folder in DOCS if folder.is_dir())
    pages = {
        path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.md")
    }
    return {name: pages[name] for name in sorted(pages, key=_place)}


def _place(name: str) -> tuple[int, bool, str]:
    first = name.partition("/")[0]
    place = FOLDERS.index(first) if first in FOLDERS else len(FOLDERS)
    return place, name != "tutorial/quickstart", name


def _list(titles: dict[str, str]) -> str:
    width = max(map(len, titles))
    return "\n".join(f"{name:{width}}  {title}" for name, title in titles.items())


def _nearest(wanted: str, pages: Iterable[str]) -> str:
    """The pages that may have been meant: with it in their names, or its like; else empty."""
    parts = [name for name in pages if wanted in name]
    if parts:
        return f"Did you mean {' or '.join(f'`{name}`' for name in parts[:MOST_SHOWN])}?"
    last = {name.rpartition("/")[2]: name for name in pages}
    close = difflib.get_close_matches(wanted.rpartition("/")[2], last, n=1)
    return f"Did you mean `{last[close[0]]}`?" if close else ""


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
