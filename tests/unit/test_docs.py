"""README.md and docs/ say what the code says: generated parts, code blocks, links, commands."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
import yaml
from feast.repo_config import load_repo_config

from feast_dynamo_ext import ViewSettings, errors
from feast_dynamo_ext.cli.main import main as feast_dynamo
from feast_dynamo_ext.cli.start import NEXT
from feast_dynamo_ext.materialize.engine import DynamoComputeEngine, DynamoComputeEngineConfig
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore, S3ParquetOfflineStoreConfig
from feast_dynamo_ext.online_store import DynamoOnlineStore, DynamoOnlineStoreConfig
from feast_dynamo_ext.provider import DynamoProvider

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "feature_repo" / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GENERATED = re.compile(r"<!-- generated: .+? -->.*?<!-- /generated -->", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:`|^|\$\()(feast-dynamo(?: [a-z-]+)*(?: --[a-z-]+)*)", re.MULTILINE)


def faults_of_pages(find) -> dict[str, list]:
    """What `find` finds wrong in each page; pages without a fault are left out."""
    found = {str(page.relative_to(ROOT)): list(find(page)) for page in PAGES}
    return {page: faults for page, faults in found.items() if faults}


@pytest.fixture(scope="module")
def generate():
    """The module docs/generate.py."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    # Its dataclass looks its annotations up there.
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["generate"]


def blocks(text: str, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(text) if found == language]


# Generated parts


def test_generated_parts_are_what_make_docs_writes_now(generate):
    texts = {page: page.read_text() for page in PAGES}
    changed = [str(page) for page, text in texts.items() if generate.rendered(text) != text]
    assert changed == [], "run `make docs`"


@pytest.mark.parametrize(
    ("block", "model"),
    [
        ("online_store", DynamoOnlineStoreConfig),
        ("offline_store", S3ParquetOfflineStoreConfig),
        ("batch_engine", DynamoComputeEngineConfig),
    ],
)
def test_every_field_is_in_the_table_with_its_default(generate, block, model):
    documented = {field.name: field.default for field in generate.config_fields(block)}
    assert documented == {name: field.default for name, field in model.model_fields.items()}
    assert all(field.meaning.endswith(".") for field in generate.config_fields(block))


def test_a_row_of_the_table(generate):
    rows = {field.name: field.row() for field in generate.config_fields("online_store")}
    assert rows["batch_size"] == (
        "| `batch_size` | integer, at least 1, at most 100 | `100` | Keys in one BatchGetItem "
        "request; DynamoDB takes at most 100, of all views together. |"
    )


def test_a_field_without_a_sentence_is_refused(generate, tmp_path):
    source = tmp_path / "config.py"
    source.write_text("class Config:\n    a: int = 1\n    b: int = 2\n    '''Text.'''\n")
    with pytest.raises(TypeError, match="`a` has no text"):
        list(generate._fields(source, "Config"))


# Code blocks


def test_code_blocks_come_from_files_that_run():
    def by_hand(page: Path) -> set[str]:
        # The blocks of that page are run by tests/contract/test_training_sets_page.py.
        if page.name in ("train-on-sagemaker.md", "train-jobs.md"):
            return set()
        text = GENERATED.sub("", page.read_text())
        return {language for language, _ in BLOCK.findall(text)} - {"bash", "text"}

    assert faults_of_pages(by_hand) == {}


def test_python_blocks_compile_and_import_what_exists():
    def failed(page: Path) -> Iterator[str]:
        for code in blocks(page.read_text(), "python"):
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    try:
                        exec(ast.unparse(node), {})  # noqa: S102 - importing is the test
                    except ImportError as error:
                        yield str(error)

    assert any(blocks(page.read_text(), "python") for page in PAGES)
    assert faults_of_pages(failed) == {}


def test_json_blocks_are_json():
    found = blocks((DOCS / "reference" / "iam.md").read_text(), "json")
    assert {json.loads(block)["Version"] for block in found} == {"2012-10-17"}


def side(diff: str, sign: str) -> str:
    """One side of a diff: `-` before, `+` after."""
    return "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in (" ", sign))


@pytest.fixture
def repo_yaml(monkeypatch):
    """The feature_store.yaml that readers see: README's diff before and after, quickstart's."""
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("FEATURE_BUCKET", "my-features")
    (diff,) = blocks((ROOT / "README.md").read_text(), "diff")
    quickstart, _ = blocks((DOCS / "tutorial" / "quickstart.md").read_text(), "yaml")
    return {"before": side(diff, "-"), "after": side(diff, "+"), "quickstart": quickstart}


@pytest.mark.parametrize(
    ("name", "region", "registry"),
    [("after", "eu-west-1", ""), ("quickstart", None, "registry.db")],
)
def test_feature_store_yaml_loads_with_our_classes(name, region, registry, repo_yaml, tmp_path):
    path = tmp_path / "feature_store.yaml"
    path.write_text(repo_yaml[name])
    config = load_repo_config(tmp_path, path)
    assert type(config.online_store) is DynamoOnlineStoreConfig
    assert type(config.offline_store) is S3ParquetOfflineStoreConfig
    assert (config.online_store.region, config.registry.path) == (region, registry)
    assert config.registry.serve_features_while_materializing is True
    provider = DynamoProvider(config)
    assert type(provider.online_store) is DynamoOnlineStore
    assert type(provider.offline_store) is S3ParquetOfflineStore


def test_five_lines_change_from_feasts_own_stores(repo_yaml):
    before, after = yaml.safe_load(repo_yaml["before"]), yaml.safe_load(repo_yaml["after"])
    assert before["provider"] == "aws"
    assert before["online_store"].pop("type") == "dynamodb"
    assert before["offline_store"].pop("type") == "file"
    assert after.pop("provider") == "feast_dynamo_ext.DynamoProvider"
    assert after["online_store"].pop("type") == "feast_dynamo_ext.DynamoOnlineStore"
    # Feast's tables, which may be there, have another key.
    assert after["online_store"].pop("table_name_template") == "{project}.packed.{table_name}"
    assert after["offline_store"].pop("type") == "feast_dynamo_ext.S3ParquetOfflineStore"
    # Else Feast refuses reads of a view while it is materialized. The path stays as it is.
    assert after.pop("registry") == {"serve_features_while_materializing": True}
    assert before.pop("registry") is None
    assert before | {"provider": "aws"} == after | {"provider": "aws"}


def test_the_batch_engine_block_on_the_page_sets_the_engine(repo_yaml, tmp_path):
    path = tmp_path / "feature_store.yaml"
    block = (DOCS / "snippets" / "batch_engine.yaml").read_text()
    path.write_text(repo_yaml["quickstart"] + "\n" + block)
    engine = DynamoProvider(load_repo_config(tmp_path, path)).batch_engine
    assert type(engine) is DynamoComputeEngine
    assert engine.settings == DynamoComputeEngineConfig(
        max_write_units_per_s=20_000, lookback_s=86_400, if_running="wait"
    )


def test_every_policy_is_on_the_page():
    shown = [
        json.loads(block) for block in blocks((DOCS / "reference" / "iam.md").read_text(), "json")
    ]
    policies = sorted((DOCS / "snippets" / "iam").glob("*.json"))
    assert len(policies) == 37
    assert len(shown) == 37
    for policy in policies:
        assert json.loads(policy.read_text()) in shown


# Errors


def test_every_error_is_on_the_page():
    page = (DOCS / "reference" / "errors.md").read_text()
    assert "AwsError" in errors.__dict__
    for name, error in vars(errors).items():
        if isinstance(error, type) and issubclass(error, errors.FeastDynamoError):
            assert f"\n## {name}\n" in page


def messages() -> list[str]:
    """Every text of the package's code, with NUL for each value that is put into it."""
    found = []
    for path in sorted((ROOT / "feast_dynamo_ext").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", "") for part in node.values)
                found.append("".join(part if isinstance(part, str) else "\0" for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.slow
def test_troubleshooting_finds_errors_by_texts_that_the_package_prints():
    page, _, _ = (DOCS / "troubleshooting.md").read_text().partition("## Messages of Feast")
    entries = re.findall(r"^### (.+)\n\n`(\w+)`\. ", page, re.MULTILINE)
    assert len(entries) == page.count("\n### ")
    assert len(entries) >= 25
    printed = "\n".join(messages())
    assert [heading for heading, _ in entries if heading not in printed] == []
    assert {name for _, name in entries} <= vars(errors).keys()


def test_pages_that_the_code_names_are_there():
    for folder in ("feast_dynamo_ext", "tests", "feature_repo"):
        for path in (ROOT / folder).rglob("*.py"):
            for page in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text()):
                assert (ROOT / page).exists(), f"{path}: {page}"


# Links and commands


@functools.cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, on GitHub and on the site."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_relative_links_lead_somewhere():
    def dead(page: Path) -> Iterator[str]:
        for link in LINK.findall(page.read_text()):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if link.startswith(("https://", "http://")):
                continue
            if not target.exists() or (anchor and anchor not in anchors(target)):
                yield link

    assert faults_of_pages(dead) == {}


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))

    def unknown(page: Path) -> set[str]:
        named = re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)
        return set(named) - targets

    assert "test" in targets
    assert faults_of_pages(unknown) == {}


def test_the_readme_names_what_make_does():
    named = (ROOT / "README.md").read_text()
    for command in ("make demo", "make test", "make docs", "make test-fast", "make test T=path"):
        assert f"`{command}`" in named


def test_the_readme_begins_as_the_quickstart_and_init_do():
    """The quickstart's commands are run by tests/contract/test_docs_examples.py."""
    (readme,) = blocks((ROOT / "README.md").read_text(), "bash")
    quickstart, _, _ = (DOCS / "tutorial" / "quickstart.md").read_text().partition("## 3. On AWS")
    commands = "".join(blocks(quickstart, "bash")).splitlines()
    assert [line for line in commands if line in readme.splitlines()] == readme.splitlines()
    assert [line for line in readme.splitlines() if line in NEXT] == [*NEXT]


def is_command(text: str) -> bool:
    """Whether the words name a command of ours and options that it has."""
    command: click.Command = feast_dynamo
    for word in shlex.split(text)[1:]:
        if word.startswith("--"):
            options = {name for option in command.params for name in option.opts}
            if word not in options | {"--help", "--version"}:
                return False
        elif isinstance(command, click.Group):
            if word not in command.commands:
                return False
            command = command.commands[word]
    return True


def test_feast_dynamo_commands_exist():
    assert is_command("feast-dynamo local up --dynamodb-local")
    assert not is_command("feast-dynamo local sideways")
    assert not is_command("feast-dynamo local up --sideways")
    unknown = faults_of_pages(
        lambda page: [
            found for found in COMMAND.findall(page.read_text()) if not is_command(found)
        ]
    )
    assert unknown == {}


def test_extras_and_python_files_exist():
    _, _, extras = (
        (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")
    )
    extras, _, _ = extras.partition("[project.scripts]")
    known = set(re.findall(r"^([\w-]+) = \[", extras, re.MULTILINE))
    folders = ("feast_dynamo_ext", "feature_repo", "docs", "tests")
    files = {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")}

    def unknown(page: Path) -> set[str]:
        text = page.read_text()
        named = set(re.findall(r"(?:feast-dynamo-ext|'\.)\[([\w-]+)\]", text))
        return (named - known) | (
            {Path(name).name for name in re.findall(r"[\w/]+\.py\b", text)} - files
        )

    assert "demo" in known
    assert faults_of_pages(unknown) == {}


def test_no_page_names_a_folder_of_somebodys_machine():
    folder = re.compile(r"(?<![\w.])/(?:root|home|work|Users)/")
    assert faults_of_pages(lambda page: folder.findall(page.read_text())) == {}


def test_the_folders_in_the_design_are_the_packages():
    (layout,) = [
        block
        for block in blocks((DOCS / "explanation" / "design.md").read_text(), "text")
        if block.startswith("feature_repo/")
    ]
    named = set(re.findall(r"[a-z_]+(?=/)", layout))
    package = ROOT / "feast_dynamo_ext"
    built = {path.parent.name for path in package.rglob("__init__.py")}
    assert built - {"one_pass", "entity_rows", "engines"} <= named | {"feast_dynamo_ext"}


def test_the_settings_of_a_view_on_the_page_are_settings():
    shown = runpy.run_path(str(DOCS / "snippets" / "view_settings.py"))
    settings = ViewSettings.from_view(shown["orders"])
    assert (settings.consistent_reads, settings.expired) == (True, "value")
    assert settings.table.deletion_protection is True
    assert shown["churn"].precompute_online is True


def test_the_block_of_the_offline_store_on_spark_is_accepted():
    block = yaml.safe_load((DOCS / "snippets" / "spark.yaml").read_text())["offline_store"]
    assert S3ParquetOfflineStoreConfig(**block).engine == "spark"


@pytest.mark.parametrize("name", ["online_store", "table_settings"])
def test_blocks_of_the_online_store_on_the_page_are_accepted(name):
    block = yaml.safe_load((DOCS / "snippets" / f"{name}.yaml").read_text())["online_store"]
    config = DynamoOnlineStoreConfig(**block)
    assert config.model_dump(include=block.keys(), exclude_none=True).keys() == block.keys()
