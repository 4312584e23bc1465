"""No module but `_feast.py` touches a private name of Feast, none but `aws.py` one of botocore.

Of pyiceberg, whose version the extra bounds, modules of `parquet/iceberg` take a few.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import subprocess
import sys
import textwrap
from pathlib import Path

import boto3
import botocore.session
import pytest

import feast_dynamo_ext
from feast_dynamo_ext import _feast
from feast_dynamo_ext.aws import BOTOCORE_INTERNALS

PACKAGE = Path(feast_dynamo_ext.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
OWN = {"self", "cls"}
# Not Feast's: the one module that works on botocore's sessions, and what is taken of pyiceberg.
OTHERS = {
    "aws.py": {"_session", "_credentials"},
    "producers.py": {"_table", "_written_manifests"},
    "snapshot_files.py": {"_apply"},
    "table_schema.py": {"_convert_schema_if_needed"},
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined_in(tree: ast.AST) -> set[str]:
    """The private names that a module, or a class, defines itself, attributes of self included."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_own(node):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


def of_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in OWN


def foreign_private_names(tree: ast.AST) -> list[str]:
    """Private names that a module takes from elsewhere: by import, attribute, or as a text."""
    own, found = defined_in(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "feast":
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            found += filter(is_private, parts)
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names for part in alias.name.split(".")]
            found += filter(is_private, parts)
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if not of_own(node) and node.attr not in own:
                found.append(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            is_access = node.func.id in {"getattr", "setattr", "hasattr", "delattr"}
            name = node.args[1] if is_access else None
            if isinstance(name, ast.Constant) and is_private(name.value):
                is_own = isinstance(node.args[0], ast.Name) and node.args[0].id in OWN
                if not is_own and name.value not in own:
                    found.append(name.value)
    return found


def test_the_scan_sees_each_form():
    source = """
        from feast.metrics import _config
        from feast import _private
        import feast._module
        from feast import utils
        utils._function()
        store._attribute
        getattr(store, "_by_name")
        setattr(store, "_set_by_name", 1)
        class A(B):
            def _mine(self): return super()._of_base() + self._mine() + other._mine()
    """
    assert sorted(foreign_private_names(ast.parse(textwrap.dedent(source)))) == [
        "_attribute",
        "_by_name",
        "_config",
        "_function",
        "_module",
        "_of_base",
        "_private",
        "_set_by_name",
    ]


@pytest.mark.slow
def test_private_names_are_taken_by_one_module():
    taken = [
        (str(module.relative_to(PACKAGE)), name)
        for module in MODULES
        if module.name != "_feast.py"
        for name in foreign_private_names(ast.parse(module.read_text()))
        if name not in OTHERS.get(module.name, ())
    ]
    assert taken == []


def test_what_feast_py_takes_is_in_its_table_and_nothing_else():
    taken = set(foreign_private_names(ast.parse((PACKAGE / "_feast.py").read_text())))
    listed = {
        row.name
        for row in _feast.PRIVATE_NAMES
        if row.kind in {"called", "attribute"} and is_private(row.name)
    }
    assert taken == listed


# Classes that extend Feast's


def classes_on_feasts() -> list[type]:
    found = set()
    for module in pkgutil.walk_packages(feast_dynamo_ext.__path__, "feast_dynamo_ext."):
        for value in vars(importlib.import_module(module.name)).values():
            if (
                inspect.isclass(value)
                and value.__module__.startswith("feast_dynamo_ext.")
                and feasts_bases(value)
            ):
                found.add(value)
    return sorted(found, key=lambda found_class: found_class.__qualname__)


def feasts_bases(extended: type) -> list[type]:
    return [base for base in extended.__mro__ if base.__module__.split(".")[0] == "feast"]


@functools.cache
def source_tree(of_class: type) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(of_class)))


@pytest.mark.parametrize("extended", classes_on_feasts(), ids=lambda found: found.__qualname__)
def test_what_a_class_shares_with_feasts_is_an_override_in_the_table(extended):
    """Also by chance: an attribute of ours that Feast's class has too would be overwritten."""
    shared = {
        (f"{base.__module__}:{base.__qualname__}", name)
        for base in feasts_bases(extended)
        for name in defined_in(source_tree(base)) & used_by(extended)
    }
    listed = {(row.owner, row.name) for row in _feast.PRIVATE_NAMES if row.kind == "overridden"}
    assert shared - listed == set()
    defined = defined_in(source_tree(extended))
    assert {name for _, name in shared} <= defined


def used_by(of_class: type) -> set[str]:
    tree = source_tree(of_class)
    named = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and of_own(node)
    }
    return {name for name in named | defined_in(tree) if is_private(name)}


def test_there_are_classes_to_look_at():
    names = [found.__qualname__ for found in classes_on_feasts()]
    assert {
        "DynamoComputeEngine",
        "DynamoOnlineStore",
        "DynamoProvider",
        "ParquetRetrievalJob",
        "S3ParquetOfflineStore",
        "S3ParquetSource",
    } <= set(names)


def test_every_override_in_the_table_is_one_of_ours():
    overridden = {
        (f"{base.__module__}:{base.__qualname__}", name)
        for extended in classes_on_feasts()
        for base in feasts_bases(extended)
        for name in vars(extended)
    }
    listed = {(row.owner, row.name) for row in _feast.PRIVATE_NAMES if row.kind == "overridden"}
    assert listed - overridden == set()


# botocore


@pytest.mark.parametrize("name", BOTOCORE_INTERNALS)
def test_botocore_has_what_this_package_takes_of_it(name):
    module, _, attributes = name.partition(":")
    found = importlib.import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute.removesuffix("()"))
        if attribute.endswith("()"):
            found = found()


def test_a_session_of_boto3_holds_one_of_botocore():
    assert type(boto3.Session()._session) is botocore.session.Session


LEVELS = """
import logging

def show():
    names = ("botocore", "botocore.credentials", "botocore.configprovider", "feast_dynamo_ext")
    print(*(logging.getLogger(name).level for name in names))

logging.getLogger("botocore.configprovider").setLevel(logging.DEBUG)
from feast_dynamo_ext import *
from feast_dynamo_ext import aws
show()
aws.session(aws.AwsSettings(region="us-east-1"))
show()
"""


@pytest.mark.slow
def test_a_session_quietens_botocore_where_nobody_set_a_level_and_importing_nothing():
    result = subprocess.run(
        [sys.executable, "-c", LEVELS], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["0 0 10 0", "0 30 10 0"]
