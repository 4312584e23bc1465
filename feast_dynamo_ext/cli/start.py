"""What a newcomer runs first: `feast-dynamo init`, and `feast-dynamo docs` for what to read."""

from __future__ import annotations

import runpy
from pathlib import Path

import click

from feast_dynamo_ext.cli.repo import Output, json_option
from feast_dynamo_ext.errors import ConfigError

TEMPLATE = Path(__file__).with_name("template")
SUFFIX = ".template"

# In an installation the pages are part of the package; in a checkout they are beside it.
PACKAGE = Path(__file__).parents[1]
DOCS = (PACKAGE / "docs", PACKAGE.parent / "docs")

NEXT = (
    "feast-dynamo local up",
    'eval "$(feast-dynamo local env)"',
    "feast apply",
    "feast-dynamo materialize --all",
    "python read.py",
    "python training_set.py",
    "feast-dynamo local down",
)


@click.command()
@click.argument("name")
@json_option
def init(name: str, output: Output) -> None:
    """Make a small feature repo in a new folder NAME, which is its project too.

    It has one view of a made-up shop's customers with 90 days of history, scripts that read
    features and write a training set, and runs at once on the embedded AWS, without an account
    or a bucket. Make it yours by changing definitions.py.

    \b
    feast-dynamo init shop
    """  # noqa: D301 - click keeps the lines after \b as they are
    folder = Path(name)
    _check_name(folder)
    try:
        folder.mkdir(parents=True)
        for source in sorted(TEMPLATE.iterdir()):
            text = source.read_text(encoding="utf-8").replace("{project}", folder.name)
            (folder / source.name.removesuffix(SUFFIX)).write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise ConfigError(f"{folder} is there already. Choose another name.") from error
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}.") from error
    runpy.run_path(str(folder / "history.py"), run_name="__main__")
    files = sorted(path.name for path in folder.iterdir())
    steps = "\n".join(f"  {step}" for step in (f"cd {folder}", *NEXT))
    output.show(
        {"folder": str(folder), "files": files},
        f"{folder} is a feature repo: {', '.join(files)}.\nTo run it on an AWS in this machine:\n"
        f"\n{steps}\n\nThe pages to read: feast-dynamo docs",
    )


def _check_name(folder: Path) -> None:
    """Refuse what cannot be the name of a project.

    Raises:
        ConfigError: it cannot.
    """
    from feast.repo_operations import is_valid_name

    if not is_valid_name(folder.name):
        raise ConfigError(
            f"`{folder.name}` cannot be a project's name. Use letters, digits, underscores "
            "and hyphens, with a letter or digit first."
        )


@click.command()
@click.argument("page", required=False)
@json_option
def docs(page: str | None, output: Output) -> None:
    """Print a page of this version's documentation, as Markdown; without PAGE, what there is.

    \b
    feast-dynamo docs
    feast-dynamo docs quickstart
    feast-dynamo docs reference/iam
    """  # noqa: D301 - click keeps the lines after \b as they are
    pages = _pages()
    if page is None:
        titles = {name: _title(path) for name, path in pages.items()}
        width = max(map(len, titles))
        lines = [f"{name:{width}}  {title}" for name, title in titles.items()]
        output.show(titles, "\n".join(lines))
        return
    wanted = page.removeprefix("docs/").removesuffix(".md")
    found = [name for name in pages if name.rpartition("/")[2] == wanted]
    if wanted in pages:
        found = [wanted]
    if not found:
        from feast_dynamo_ext.config import did_you_mean

        raise ConfigError(f"There is no page `{page}`. {did_you_mean(wanted, pages, 'There are')}")
    text = pages[found[0]].read_text(encoding="utf-8")
    output.show({"page": found[0], "text": text}, text.rstrip("\n"))


def _pages() -> dict[str, Path]:
    """The pages by name, for example `reference/iam`."""
    folder = next(folder for folder in DOCS if folder.is_dir())
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.md"))
    }


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
