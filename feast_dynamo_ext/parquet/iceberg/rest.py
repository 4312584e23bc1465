"""Catalogs that speak Iceberg's REST protocol: what pyiceberg's client lacks, and its errors.

To be imported where it is used: it needs pyiceberg.
"""

from __future__ import annotations

import datetime as dt
import functools
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pyiceberg.catalog.rest import (
    SCAN_PLANNING_MODE,
    SNAPSHOT_LOADING_MODE,
    RestCatalog,
    TableResponse,
)
from pyiceberg.exceptions import (
    AuthorizationExpiredError,
    ForbiddenError,
    OAuthError,
    ServerError,
    ServiceUnavailableError,
    TooManyRequestsError,
    UnauthorizedError,
)
from requests import RequestException, Session

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    ConfigError,
    CredentialsError,
    FeastDynamoError,
    SourceReadError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyiceberg.catalog.rest.auth import AuthManager
    from pyiceberg.table import Table

    from feast_dynamo_ext.aws import AwsSettings


CONNECT_S = 10
READ_TIMEOUT, READ_S = "rest.read-timeout-s", 120
"""Property with the longest wait for an answer, and its default."""

DELEGATION = "header.X-Iceberg-Access-Delegation"
"""Property with the header that asks for credentials of files; None sends none."""

ACCESS_KEY, SECRET_KEY = "s3.access-key-id", "s3.secret-access-key"
SESSION_TOKEN, EXPIRY = "s3.session-token", "s3.session-token-expires-at-ms"

REFUSED = (UnauthorizedError, AuthorizationExpiredError, OAuthError)
DOWN = (RequestException, ServiceUnavailableError, ServerError, TooManyRequestsError)


class BoundedRestCatalog(RestCatalog):
    """pyiceberg's client, which waits for no answer forever, and takes vended credentials."""

    def _create_session(self) -> Session:
        return self._bounded(super()._create_session())

    def _create_legacy_oauth2_auth_manager(self, session: Session) -> AuthManager:
        return super()._create_legacy_oauth2_auth_manager(self._bounded(session))

    def _bounded(self, session: Session) -> Session:
        timeout = (CONNECT_S, float(self.properties.get(READ_TIMEOUT, READ_S)))
        session.request = functools.partial(session.request, timeout=timeout)  # type: ignore[method-assign]
        return session

    def _fetch_config(self) -> None:
        super()._fetch_config()
        # Whether a commit is there is looked up in all snapshots, and which file holds what in
        # the manifests, whatever the server would rather have.
        self.properties |= {SNAPSHOT_LOADING_MODE: "all", SCAN_PLANNING_MODE: "client"}

    def _response_to_table(
        self, identifier_tuple: tuple[str, ...], table_response: TableResponse
    ) -> Table:
        table = super()._response_to_table(identifier_tuple, table_response)
        _use_vended(table)
        return table


# Credentials of files


def _use_vended(table: Table) -> None:
    """Reach a table's files with the credentials that the catalog vends, where it does.

    A source that names credentials or `s3.` properties itself has another FileIO.
    """
    io: Any = table.io
    settings: AwsSettings | None = getattr(io, "settings", None)
    is_refused = table.catalog.properties.get(DELEGATION, "") is None
    if settings is None or is_refused or not io.properties.get(ACCESS_KEY):
        return

    def renewed() -> dict[str, Any]:
        name = ".".join(table.name())
        try:
            found = table.catalog.load_table(table.name()).io.properties
        except Exception as error:  # each server fails in ways of its own
            raise CredentialsError(
                f"The credentials that the catalog vends for the files of the Iceberg table "
                f"{name} cannot be renewed: {type(error).__name__}. Run it again.",
                service="s3",
            ) from error
        return _keys(found)

    given = io.properties
    io.settings = replace(
        settings,
        region=given.get("s3.region") or given.get("client.region") or settings.region,
        endpoint_url=given.get("s3.endpoint") or settings.endpoint_url,
        credentials=aws.given_credentials(_keys(given), renewed),
    )
    io.s3 = functools.cache(lambda: aws.filesystem("s3://metadata", io.settings)[0])


def _keys(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Vended credentials as botocore names them."""
    expiry = properties.get(EXPIRY)
    moment = dt.datetime.fromtimestamp(int(expiry) / 1000, dt.timezone.utc) if expiry else None
    return {
        "access_key": properties[ACCESS_KEY],
        "secret_key": properties.get(SECRET_KEY),
        "token": properties.get(SESSION_TOKEN),
        "expiry_time": moment and moment.isoformat(),
    }


# What is sent and said


@dataclass(frozen=True)
class Endpoint:
    """Where a catalog answers.

    Attributes:
        subject: who names it, for messages.
        uri: URL of it.
        token_env_var: environment variable of its token, or None.
        secrets: what no message may show beside the token.
    """

    subject: str
    uri: str
    token_env_var: str | None
    secrets: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what cannot be sent, or sent to.

        Raises:
            ConfigError: there is no endpoint, or its token is none.
        """
        if not self.uri:
            raise ConfigError(
                f"{self.subject}: a catalog of the type `rest` needs its `endpoint`, such as "
                "`https://catalog.example.com`."
            )
        aws.refuse_no_url(self.uri, f"{self.subject}: the catalog's endpoint", "catalog")
        token = self._token
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(
                f"{self.subject}: what the environment variable `{self.token_env_var}` holds is "
                "no token: there is a space, a line break or a letter beyond ASCII within it."
            )

    def error(self, name: str, error: Exception) -> FeastDynamoError:
        """What the catalog answered, or that it did not, as our error.

        Args:
            name: namespace and table.
            error: what pyiceberg or requests raised.
        """
        uri = urlsplit(self.uri)
        begin = (
            f"{self.subject}: the catalog at "
            f"{uri.scheme}://{uri.netloc.rpartition('@')[2]}{uri.path}"
        )
        said = " ".join(str(error).split()).rstrip(".")
        for secret in filter(None, (self._token, *self.secrets)):
            said = said.replace(secret, "***")
        if isinstance(error, REFUSED):
            held = "Name the environment variable of a token as `token_env_var`."
            if self.secrets:
                held = "Check the `token` or the `credential` among its properties."
            if self.token_env_var:
                held = f"Check the token in the environment variable `{self.token_env_var}`."
            return CredentialsError(
                f"{begin} does not know who asks for {name}: {said}. {held}", service="rest"
            )
        if isinstance(error, ForbiddenError):
            return AccessDeniedError(
                f"{begin} refuses the Iceberg table {name}: {said}. Grant it there.",
                service="rest",
            )
        advice = "Check `endpoint`, `warehouse` and `namespace`."
        if isinstance(error, DOWN):
            advice = "Check that it runs and can be reached, and run it again."
        return SourceReadError(
            f"{begin}: the Iceberg table {name} cannot be used: {type(error).__name__}: {said}. "
            f"{advice}"
        )

    @property
    def _token(self) -> str:
        return os.environ.get(self.token_env_var or "", "").strip()
