"""Writes the parts of README.md and docs/ that follow from the code; `make docs` runs it first.

With `--check` nothing is written; the exit code is 1 where a part is not what it should be.

Such a part stands in a page between two lines, `<!-- generated: NAME -->` and
`<!-- /generated -->`, and is replaced. NAME is one of::

    online_store, offline_store,
    batch_engine                  a table of the fields of that block of feature_store.yaml
    table                         the same of the `table` block inside `online_store`
    catalog                       the same of the `catalog` block inside `offline_store`
    settings CLASS                keys and meanings of what a training set's yaml declares
    cli                           the help of every feast-dynamo command
    iam                           a section for each policy of snippets/iam/policies.yaml
    errors                        a section for each class of errors.py
    file PATH                     a file as a code block, PATH counted from the project's folder

Pydantic does not keep the text that stands beside a field, so the tables are read from the source.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from feast_dynamo_ext.cli.main import main as feast_dynamo
from feast_dynamo_ext.cli.start import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "feast_dynamo_ext"
DOCS = ROOT / "docs"
POLICIES = DOCS / "snippets" / "iam"
TROUBLESHOOTING = DOCS / "troubleshooting.md"
PART = re.compile(r"<!-- generated: (.+?) -->\n.*?<!-- /generated -->", re.DOTALL)

ONLINE = PACKAGE / "dynamo" / "settings.py"
SHARED = (PACKAGE / "config.py", "AwsConfigModel")
# Each block's class, then those it inherits fields from.
BLOCKS = {
    "online_store": (
        (PACKAGE / "online_store.py", "DynamoOnlineStoreConfig"),
        SHARED,
        (ONLINE, "OnlineSettings"),
        (ONLINE, "TableConfig"),
    ),
    "offline_store": (
        (PACKAGE / "offline_store.py", "S3ParquetOfflineStoreConfig"),
        SHARED,
    ),
    "batch_engine": (
        (PACKAGE / "materialize" / "engine.py", "DynamoComputeEngineConfig"),
        (PACKAGE / "materialize" / "run.py", "MaterializeSettings"),
    ),
    "table": ((PACKAGE / "view_settings.py", "TableSettings"),),
    "catalog": ((PACKAGE / "parquet" / "iceberg" / "catalog.py", "CatalogConfig"),),
}
PAGE_WIDTH = 90
MOST_SHOWN = 2
LANGUAGES = {
    ".dockerfile": "dockerfile",
    ".py": "python",
    ".yaml": "yaml",
    ".json": "json",
    ".diff": "diff",
}
YAML_TYPES = {
    "str": "text",
    "StrictStr": "text",
    "int": "integer",
    "float": "number",
    "bool": "true or false",
    "StrictBool": "true or false",
    "dict[str, str]": "map of text to text",
    "TableSettings": "[table settings](#table)",
    "CatalogConfig": "[catalog](#catalog)",
    "Ceiling": "integer of at least 1 or `off`",
    "None": "null",
}
BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
# What most commands take; the page says it once.
COMMON_OPTION = re.compile(
    r"^  (?:-h, --help|--json|-c, --chdir|--folder) .*\n?(?:^ {6,}\S.*\n?)*", re.M
)
NOT_SHOWN = {"default"}  # nor a pattern, whose meaning is in the field's own sentence


@dataclass(frozen=True)
class ConfigField:
    """One field of a config class, as its source has it."""

    name: str
    kind: str
    bounds: str
    default: Any
    meaning: str

    def row(self) -> str:
        """Its row of the table."""
        kind = ", ".join(filter(None, (self.kind, self.bounds)))
        default = self.default if isinstance(self.default, str) else json.dumps(self.default)
        return f"| `{self.name}` | {kind} | `{default}` | {self.meaning} |"


def pages() -> list[Path]:
    """Every page that may have generated parts."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def rendered(page: str) -> str:
    """A page's text with its generated parts made anew.

    Raises:
        KeyError: a part of a name that is not known.
        FileNotFoundError: a part that is a file which does not exist.
    """
    return PART.sub(
        lambda part: f"<!-- generated: {part[1]} -->\n{_part(part[1])}\n<!-- /generated -->", page
    )


def _part(name: str) -> str:
    if name.startswith("file "):
        return _file(ROOT / name.removeprefix("file "))
    if name.startswith("settings "):
        return _settings(name.removeprefix("settings "))
    whole = {"cli": _cli, "iam": _iam, "errors": _errors}
    return whole[name]() if name in whole else _table(name)


def _file(path: Path) -> str:
    text = path.read_text().strip("\n")  # lines of a diff may start with a space
    if path.suffix == SUFFIX:
        # As `feast-dynamo init shop` writes it.
        path, text = path.with_suffix(""), text.replace("{project}", "shop")
    return f"```{LANGUAGES[path.suffix]}\n{text}\n```"


def _table(block: str) -> str:
    # Those that both stores have are in the table of the first.
    shared = {field.name for field in _fields(*SHARED)} if block == "offline_store" else set()
    rows = [field.row() for field in config_fields(block) if field.name not in shared]
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows])


DECLARATIONS = ("encodings", "definition")
"""Modules of `sagemaker/` with what users declare."""


def _settings(class_name: str) -> str:
    """The keys of a declaration's class, own ones alone, with what stands below each."""
    modules = [
        ast.parse((PACKAGE / "sagemaker" / f"{name}.py").read_text()) for name in DECLARATIONS
    ]
    (found,) = (
        node
        for module in modules
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    rows = [
        f"| `{_key(node)}` | {_meaning(following)}{'' if node.value else ' Required.'} |"
        for node, following in zip(found.body, found.body[1:], strict=False)
        if isinstance(node, ast.AnnAssign) and not ast.unparse(node.target).startswith("_")
    ]
    return "\n".join(["| key | meaning |", "|---|---|", *rows])


def _key(node: ast.AnnAssign) -> str:
    """The name that yaml has for a field."""
    words = node.value.keywords if isinstance(node.value, ast.Call) else []
    aliases = [ast.literal_eval(word.value) for word in words if word.arg == "alias"]
    return str(aliases[0]) if aliases else ast.unparse(node.target)


def _meaning(following: ast.stmt) -> str:
    if not (isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)):
        raise TypeError("A declared key has no text after it that says what it means.")
    return " ".join(str(following.value.value).split()).replace("|", r"\|")


def config_fields(block: str) -> list[ConfigField]:
    """The fields of a block: `type`, those that its class inherits, then its own."""
    (first, *own), *inherited = ([*_fields(*where)] for where in BLOCKS[block])
    more = [field for fields in inherited for field in fields]
    return [first, *more, *own]


def _fields(path: Path, class_name: str) -> Iterator[ConfigField]:
    module = ast.parse(path.read_text())
    (found,) = (
        node for node in module.body if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    for node, following in zip(found.body, found.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            # What begins with an underscore is the class's own.
            if not name.startswith("_"):
                yield _field(node, name, following)


def _field(node: ast.AnnAssign, name: str, following: ast.stmt) -> ConfigField:
    if not (isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)):
        raise TypeError(f"Config field `{name}` has no text after it that says what it means.")
    options: dict[str, Any] = {}
    if isinstance(node.value, ast.Call):
        options = {
            str(word.arg): ast.literal_eval(word.value)
            for word in node.value.keywords
            if word.arg not in ("pattern", "default_factory")
        }
        options.setdefault("default", {})  # of a factory, which is `dict`
    elif node.value is not None:
        options = {"default": ast.literal_eval(node.value)}
    return ConfigField(
        name=name,
        kind=_kind(node.annotation),
        bounds=", ".join(
            f"{BOUNDS[key]} {value}" for key, value in options.items() if key not in NOT_SHOWN
        ),
        default=options["default"],
        meaning=" ".join(str(following.value.value).split()).replace("|", r"\|"),
    )


def _kind(annotation: ast.expr) -> str:
    if isinstance(annotation, ast.BinOp):
        kinds = [_kind(annotation.left), _kind(annotation.right)]
        return " or ".join(kind for kind in kinds if (kind, kinds[-1]) != ("integer", "number"))
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        values = ast.literal_eval(annotation.slice)
        texts = values if isinstance(values, tuple) else (values,)
        return " or ".join(f"`{text}`" for text in texts)
    return YAML_TYPES[ast.unparse(annotation)]


def _cli() -> str:
    return "\n\n".join(_help(feast_dynamo, "feast-dynamo", None))


def _help(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    context = command.make_context(
        name, [], parent=parent, resilient_parsing=True, terminal_width=80
    )
    text = (
        COMMON_OPTION.sub("", command.get_help(context)) if parent else command.get_help(context)
    )
    yield f"## {context.command_path}\n\n```text\n{text.rstrip()}\n```"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            yield from _help(command.commands[child], child, context)


def _iam() -> str:
    policies = yaml.safe_load((POLICIES / "policies.yaml").read_text())
    parts = []
    for policy in policies:
        parts += [f"## {policy['title']}", policy.get("for"), _policy(policy["file"])]
        parts.append(policy.get("notes", "").strip())
    return "\n\n".join(filter(None, parts))


def _policy(name: str) -> str:
    policy = json.loads((POLICIES / f"{name}.json").read_text())
    statements = ",\n".join(_statement(statement) for statement in policy["Statement"])
    return f'```json\n{{"Version": "{policy["Version"]}", "Statement": [\n{statements}\n]}}\n```'


def _statement(statement: dict[str, Any]) -> str:
    """A statement in few lines: what it is, what it allows, and on what."""
    lines = [f'"{key}": {_value(value)}' for key, value in statement.items() if key != "Effect"]
    head = [part for part in lines if part.startswith('"Sid"')]
    rest = [part for part in lines if part not in head]
    first = ", ".join([*head, f'"Effect": "{statement["Effect"]}"'])
    return "  {" + ",\n   ".join([first, *rest]) + "}"


def _value(value: Any) -> str:
    text = json.dumps(value)
    if isinstance(value, list) and len(text) > PAGE_WIDTH:
        text = "[\n     " + ",\n     ".join(json.dumps(part) for part in value) + "]"
    return text


def anchor(heading: str) -> str:
    """The anchor of a heading, on GitHub and on the site alike."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _errors() -> str:
    module = ast.parse((PACKAGE / "errors.py").read_text())
    classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
    return "\n\n".join(_error(node) for node in classes)


def _error(node: ast.ClassDef) -> str:
    bases = " and ".join(f"`{ast.unparse(base)}`" for base in node.bases)
    text, _, attributes = (ast.get_docstring(node) or "").partition("\n\nAttributes:\n")
    attributes = re.sub(r"^    (\w+):", r"- `\1`:", attributes, flags=re.MULTILINE)
    seen = [
        f"[{heading}](../troubleshooting.md#{anchor(heading)})" for heading in _entries(node.name)
    ]
    if len(seen) == 1:
        seen = [re.sub(r"^\[.*?\]\(", "[What to do](", seen[0])]
    if len(seen) > MOST_SHOWN:
        seen[MOST_SHOWN:] = [f"[{len(seen) - MOST_SHOWN} more](../troubleshooting.md)"]
    parts = [f"## {node.name}", f"{bases}. {text}".replace("``", "`")]
    if attributes:
        parts.append(re.sub(r"^    +", "  ", attributes, flags=re.MULTILINE).replace("``", "`"))
    if seen:
        parts.append(f"{'; '.join(seen)}.")
    return "\n\n".join(parts)


def _entries(error: str) -> list[str]:
    """The entries of the troubleshooting page that name an error as what is raised."""
    sections = re.split(r"^### ", TROUBLESHOOTING.read_text(), flags=re.MULTILINE)[1:]
    found = []
    for section in sections:
        heading, _, text = section.partition("\n")
        raised, _, _ = text.strip().partition("\n\n")
        if f"`{error}`" in raised.partition(". ")[0]:
            found.append(heading)
    return found


def main(*, check: bool) -> bool:
    """Write every page whose generated parts have changed, or say which would be.

    Returns:
        Whether there were none.
    """
    changed = {page: rendered(page.read_text()) for page in pages()}
    changed = {page: new for page, new in changed.items() if new != page.read_text()}
    for page, new in changed.items():
        if not check:
            page.write_text(new)
        did = "is not what `make docs` writes" if check else "written"
        sys.stdout.write(f"{page.relative_to(ROOT)}: {did}\n")
    return not changed


if __name__ == "__main__":
    unchanged = main(check="--check" in sys.argv[1:])
    sys.exit("--check" in sys.argv[1:] and not unchanged)
