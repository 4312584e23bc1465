"""Yaml files that declare something: their values, with the line of each.

YAML takes what it can for dates and numbers, keeps the last of two equal keys and knows no lines
afterwards; a declaration is refused where its text does not say one thing only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator


def declared_yaml(text: str, subject: str) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    """The mapping that a yaml text declares, and the line of each path of keys in it.

    Args:
        text: of one document.
        subject: its name in errors.

    Raises:
        ConfigError: no yaml, a value that its form makes a wrong date or number, a key that is
            there twice or is no text or number, or no mapping; names the line.
    """
    import yaml

    node: Any = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        lines = dict(_lines(node, (), subject))
        _refuse_unreadable(loader, node, subject)
        values = loader.construct_document(node) if node is not None else None
    except RecursionError as error:
        raise ConfigError(f"{subject}: it is nested too deep. Write it flat.") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        words = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{subject}{line}: it is no yaml: {words}.") from error
    if not isinstance(values, dict):
        line = f", line {node.start_mark.line + 1}" if node is not None else ""
        raise ConfigError(
            f"{subject}{line}: it is no mapping of settings, such as `label: churned`."
        )
    return values, lines


def _refuse_unreadable(loader: Any, node: Any, subject: str) -> None:
    """Refuse plain values that yaml takes for dates or numbers which they are not.

    Raises:
        ConfigError: names the line.
    """
    import yaml

    waiting, seen = [node], set[int]()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, yaml.MappingNode):
            waiting += [part for pair in each.value for part in pair]
        elif isinstance(each, yaml.SequenceNode):
            waiting += each.value
        elif each.tag != "tag:yaml.org,2002:merge":  # `<<`, which is no value
            try:
                loader.construct_object(each)
            except yaml.YAMLError:
                raise  # names its line itself
            except (ValueError, LookupError, OverflowError) as error:
                kind = each.tag.rpartition(":")[2]
                raise ConfigError(
                    f"{subject}, line {each.start_mark.line + 1}: `{each.value}` is no {kind}: "
                    f"{error}. Correct it, or put it in quotes if it is a text."
                ) from error


def _lines(
    node: Any, path: tuple[Any, ...], subject: str, above: tuple[int, ...] = ()
) -> Iterator[tuple[Any, int]]:
    """The line of each path of keys.

    Raises:
        ConfigError: a key stands twice, of which yaml would take the last; a key is a list or a
            mapping; or an alias stands for what it is in.
    """
    import yaml

    if node is not None and id(node) in above:
        raise ConfigError(
            f"{subject}, line {node.start_mark.line + 1}: it holds an alias of itself. Write out "
            "what is meant."
        )
    inner = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        seen: dict[Any, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(
                    f"{subject}, line {line}: a key is a list or a mapping. Write a name."
                )
            if key.value in seen:
                raise ConfigError(
                    f"{subject}, line {line}: `{key.value}` stands in line {seen[key.value]} "
                    "already. Leave one of the two."
                )
            seen[key.value] = line
            yield (*path, key.value), line
            yield from _lines(value, (*path, key.value), subject, inner)
    elif isinstance(node, yaml.SequenceNode):
        for place, each in enumerate(node.value):
            yield (*path, place), each.start_mark.line + 1
            yield from _lines(each, (*path, place), subject, inner)
