"""Base models of the blocks of feature_store.yaml and of settings, and how they name a mistake."""

from __future__ import annotations

import difflib
import logging
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from feast.repo_config import FeastConfigBaseModel
from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from feast_dynamo_ext import _feast
from feast_dynamo_ext.aws import AwsSettings, refuse_no_url
from feast_dynamo_ext.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from feast.repo_config import RepoConfig
    from pydantic_core import ErrorDetails
    from typing_extensions import Self


_SECRET = re.compile(r"password|passwd|secret|token|credential|access_key|private_key", re.I)


def secret_keys(path: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Keys of yaml whose values are secrets, by their names or as a user within a URL.

    Args:
        path: what stands before each of them, for example `online_store`.
        values: keys and values, which may have others within.
    """
    for key, value in values.items():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict):
            yield from secret_keys(where, value)
        has_user = isinstance(value, str) and "@" in urlsplit(value).netloc
        if has_user or (value and _SECRET.search(str(key))):
            yield where


def did_you_mean(name: object, known: Iterable[str], otherwise: str, prefix: str = "") -> str:
    """The end of a message about an unknown name: the known name nearest to it, else all of them.

    Args:
        name: the unknown name.
        known: names that exist.
        otherwise: what stands before the list of all, for example ``Known``.
        prefix: what a person writes before each name.
    """
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    if close:
        return f"Did you mean `{prefix}{close[0]}`?"
    return f"{otherwise}: {', '.join(prefix + other for other in known) or 'none'}."


def refuse_unknown(subject: str, prefix: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that no setting has, with the one that may have been meant.

    Raises:
        ConfigError: naming the subject and the name.
    """
    known = set(known)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, "Known", prefix)
            raise ConfigError(f"{subject}: there is no setting `{prefix}{name}`. {hint}")


SIZE = r"^\d+(\.\d+)? ?([KMGT]i?B)$"
"""Of settings that are a size of memory."""

NUMBERS = frozenset({"int", "float"})

_IN_WORDS = {
    SIZE: "must be a size such as 128MB, 2GB or 1.5GiB",
    "float_parsing": "must be a number, without a unit",
    "float_type": "must be a number",
    "int_parsing": "must be a whole number, without a unit",
    "int_type": "must be a whole number",
}


def problems(error: ValidationError) -> str:
    """All that pydantic found wrong, each with the field it is in; no value is shown."""
    messages: dict[str, str] = {}
    for problem in error.errors(include_input=False, include_url=False):
        # Of a number, pydantic says what each of its types would be: the last one takes the most.
        path = [str(part) for part in problem["loc"] if part not in NUMBERS]
        messages[".".join(path)] = _message(problem)
    return "; ".join(f"`{field}`: {message}" for field, message in messages.items())


def _message(problem: ErrorDetails) -> str:
    # Pydantic shows the pattern, which few can read.
    pattern = problem.get("ctx", {}).get("pattern", "")
    return _IN_WORDS.get(pattern, _IN_WORDS.get(problem["type"], problem["msg"]))


class AwsConfigModel(FeastConfigBaseModel):
    """The fields that the online and offline store's blocks of feature_store.yaml share."""

    region: str | None = None
    """AWS region name, for example `eu-west-1`. Default: `AWS_REGION`, `AWS_DEFAULT_REGION` or the
    profile's region."""

    endpoint_url: str | None = None
    """URL of the service's endpoint: a VPC endpoint or a local server. Default:
    `AWS_ENDPOINT_URL_<SERVICE>`, `AWS_ENDPOINT_URL`, or AWS's own for the region."""

    profile: str | None = None
    """Named profile of the shared AWS config and credentials files. Default: `AWS_PROFILE`."""

    role_arn: str | None = None
    """ARN of an IAM role to assume; its temporary credentials (1 hour) are renewed before they
    expire. Default: none is assumed."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        # Feast looks at the registry's block after those of the stores.
        _feast.hide_feasts_warnings()
        if isinstance(values, dict):
            _refuse_unknown_keys(cls, values)
            _refuse_unset_variables(cls, values)
        try:
            return handler(values)
        except ValidationError as error:
            raise ConfigError(
                f"{_block(cls)} of feature_store.yaml: {problems(error)}. "
                "`feast-dynamo docs configuration` explains each field."
            ) from error

    @field_validator("endpoint_url")
    @classmethod
    def _endpoint_is_a_url(cls, url: str | None) -> str | None:
        if url is not None:
            block = _block(cls)
            service = "dynamodb" if block == "online_store" else "s3"
            refuse_no_url(url, f"{block} of feature_store.yaml: `endpoint_url`", service)
        return url

    def aws(self) -> AwsSettings:
        """The settings as a value that `session`, `client` and `filesystem` take."""
        return AwsSettings(self.region, self.endpoint_url, self.profile, self.role_arn)


logger = logging.getLogger(__name__)

FEASTS_PROVIDERS = frozenset({"local", "aws", "gcp", "azure"})


def warn_of_other_provider(config: RepoConfig) -> None:
    """Warn of a provider that has Feast convert what is written, which no store sees any more.

    Called when a store is opened, which a process does once.
    """
    name = config.provider
    if name not in FEASTS_PROVIDERS and not _feast.is_built_on_feasts(name):
        return
    what = "is Feast's" if name in FEASTS_PROVIDERS else "is built on Feast's"
    logger.warning(
        "feature_store.yaml: `provider: %s` %s. Feast changes values before this store sees them: "
        "5.5 is 5 in an Int64, and a key 1.5 writes the row of key 1. It materializes one view "
        "after the other, in memory and without resuming, and repairs no states. %s",
        name,
        what,
        "Set `provider: feast_dynamo_ext.DynamoProvider`"
        if name in FEASTS_PROVIDERS
        else "Derive it from feast_dynamo_ext.DynamoProvider",
    )


_WARNED: set[tuple[str, str]] = set()
"""Keys of feature_store.yaml, by project, of which this process has warned."""


def warn_of_unknown_keys(config: RepoConfig) -> None:
    """Warn of keys at the top of feature_store.yaml, and of its `registry`, that look like others.

    Feast takes any key, and its own defaults in place of the one that was meant. Keys that are
    like none, or begin as those that hold YAML's anchors do (`x-`), are their owner's.
    """
    for block, prefix in ((config, ""), (config.registry, "registry.")):
        fields = type(block).model_fields
        written = {field.alias or name for name, field in fields.items()} - {"repo_path"}
        for key in (block.model_extra or {}).keys() - fields.keys():
            close = difflib.get_close_matches(key, written, n=1)
            is_owners = not close or key.startswith(("x-", "_", "."))
            if not is_owners and (config.project, prefix + key) not in _WARNED:
                _WARNED.add((config.project, prefix + key))
                logger.warning(
                    "feature_store.yaml: nothing reads the key `%s%s`. Did you mean `%s%s`?",
                    prefix,
                    key,
                    prefix,
                    close[0],
                )


def _block(model: type[FeastConfigBaseModel]) -> str:
    return "online_store" if "Online" in model.__name__ else "offline_store"


def _refuse_unknown_keys(model: type[FeastConfigBaseModel], values: dict[str, Any]) -> None:
    known = set(model.model_fields)
    for key in values.keys() - known:
        hint = did_you_mean(key, known, "Known")
        raise ConfigError(f"{_block(model)} of feature_store.yaml: unknown key `{key}`. {hint}")


def _refuse_unset_variables(model: type[FeastConfigBaseModel], values: dict[str, Any]) -> None:
    for key, value in values.items():
        unset = re.search(r"\$\{?(\w+)\}?", value) if isinstance(value, str) else None
        if unset:
            raise ConfigError(
                f"{_block(model)} of feature_store.yaml: `{key}` is `{value}`, because the "
                f"environment variable {unset[1]} is not set. Set it, or write the value itself."
            )


class SettingsModel(FeastConfigBaseModel):
    """Settings that say of a mistake, in one sentence, which it is and what would be right.

    The validation context may say whose settings they are (`subject`) and what stands before
    their names (`prefix`), as it does where they are tags.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # What each setting may be, in words.
    _expected: ClassVar[dict[str, str]] = {}

    # Settings that are no more, and what to do instead.
    _removed: ClassVar[dict[str, str]] = {}

    @model_validator(mode="wrap")
    @classmethod
    def _explain(
        cls, values: Any, handler: ModelWrapValidatorHandler[Any], info: ValidationInfo
    ) -> Any:
        context = info.context or {}
        subject, prefix = context.get("subject", cls.__name__), context.get("prefix", "")
        if isinstance(values, dict):
            for name in cls._removed.keys() & values.keys():
                raise ConfigError(f"{subject}: `{prefix}{name}` {cls._removed[name]}.")
            refuse_unknown(subject, prefix, values, cls.model_fields)
        try:
            settings = handler(values)
        except ValidationError as error:
            raise ConfigError(f"{subject}: {cls._first_problem(error, prefix)}.") from error
        settings.check(subject)
        return settings

    @classmethod
    def _first_problem(cls, error: ValidationError, prefix: str) -> str:
        problem = error.errors(include_url=False)[0]
        if not problem["loc"]:
            return f"`{problem['input']}` is not a mapping of settings"
        name = str(problem["loc"][0])
        return f"`{prefix}{name}` is `{problem['input']}`, but must be {cls._expected[name]}"

    def check(self, subject: str) -> None:
        """Refuse settings that contradict each other.

        Raises:
            ConfigError: naming the subject and the settings.
        """


_WITHIN: ContextVar[bool] = ContextVar("within a declaration", default=False)


class WrongKeyError(ValueError):
    """Settings of the outermost declaration that contradict each other, and where.

    Attributes:
        path: of the key to correct.
    """

    def __init__(self, message: str, *path: str) -> None:
        """See the class."""
        super().__init__(message)
        self.path = path


class DeclarationModel(BaseModel):
    """What users declare in a yaml file or in Python, with models inside each other.

    A mistake is one ConfigError of the outermost model, with the path of the key. The validation
    context may say what is declared (`subject`) and where: `lines` has the line of each path of
    keys in the file.
    """

    # No infinity and no NaN: a declaration is kept as JSON, which has neither.
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )

    @model_validator(mode="wrap")
    @classmethod
    def _explain(
        cls, values: Any, handler: ModelWrapValidatorHandler[Any], info: ValidationInfo
    ) -> Any:
        # A ValueError of a model inside gets its path from pydantic.
        if _WITHIN.get():
            return handler(values).checked()
        outermost, context = _WITHIN.set(True), info.context or {}
        try:
            return handler(values).checked()
        except ValidationError as error:
            raise ConfigError(_declared_wrongly(cls, error, context)) from error
        except ValueError as error:
            path = error.path if isinstance(error, WrongKeyError) else ()
            where = place_of(path, context.get("subject", cls.__name__), context.get("lines", {}))
            raise ConfigError(f"{where}: {str(error).removesuffix('.')}.") from error
        finally:
            _WITHIN.reset(outermost)

    def checked(self) -> Self:
        """Itself.

        Raises:
            ValueError: settings that contradict each other.
        """
        return self


def _declared_wrongly(
    model: type[BaseModel], error: ValidationError, context: Mapping[str, Any]
) -> str:
    found = error.errors(include_url=False)
    # An unknown key may be one that is missing. Of a value that may have several forms, the
    # mistake is in the form that it is nearest to.
    problem = max(
        found,
        key=lambda each: (_is_unknown(each), len(each["loc"]), each["type"] == "finite_number"),
    )
    path = tuple(part for part in problem["loc"] if not _is_of_pydantic(part))
    where = place_of(path, context.get("subject", model.__name__), context.get("lines", {}))
    name = ".".join(map(str, path))
    if _is_unknown(problem):
        known = {field.alias or key for key, field in _model_at(model, path).model_fields.items()}
        return f"{where}: there is no setting `{name}`. {did_you_mean(path[-1], known, 'Known')}"
    if problem["type"] == "missing":
        return f"{where}: `{name}` is missing. Add it."
    words = _message(problem).removeprefix("Value error, ").removesuffix(".")
    if problem["type"] == "value_error":
        return f"{where}: `{name}`: {words}."
    words = words[:1].lower() + words[1:]
    return f"{where}: `{name}` is `{problem['input']}`: {words}."


def _is_unknown(problem: ErrorDetails) -> bool:
    return problem["type"] == "extra_forbidden"


def place_of(path: tuple[Any, ...], subject: str, lines: Mapping[tuple[Any, ...], int]) -> str:
    """The subject, and the line of a path of keys or of the nearest one above it."""
    while path and path not in lines:
        path = path[:-1]
    return f"{subject}, line {lines[path]}" if path in lines else subject


def _is_of_pydantic(part: Any) -> bool:
    """Whether a part of a path is the name of a form or of a check, which no user wrote."""
    return isinstance(part, str) and ("[" in part or part in _FORMS)


_FORMS = frozenset({"str", "int", "float", "bool", "none", "constrained-str"})


def _model_at(model: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel]:
    """The model that has the last key of a path."""
    for part in path[:-1]:
        fields = {field.alias or key: field for key, field in model.model_fields.items()}
        inner = _model_in(fields[part].annotation) if part in fields else None
        model = inner or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = map(_model_in, getattr(annotation, "__args__", ()))
    return next((model for model in found if model is not None), None)
