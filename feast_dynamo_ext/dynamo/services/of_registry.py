"""Declares the precomputed services that Feast's registry has."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext import _feast
from feast_dynamo_ext.dynamo.services.spec import precomputed_services
from feast_dynamo_ext.errors import AccessDeniedError

if TYPE_CHECKING:
    from feast import RepoConfig

    from feast_dynamo_ext.dynamo.services.spec import ServiceSpec

logger = logging.getLogger(__name__)


def declared_services(
    store: Any, config: RepoConfig, registry: Any, view: Any, *, is_fresh: bool
) -> list[ServiceSpec]:
    """Have the vectors of a view's precomputed services kept from now on.

    Args:
        store: the DynamoOnlineStore.
        config: the repo's.
        registry: Feast's.
        view: whose services are meant.
        is_fresh: whether the registry is read anew, and services that have changed are declared
            anew; else its cache is taken, and a missing permission to declare is logged.

    Returns:
        The services of which not every entity has got its vector yet.

    Raises:
        AwsError: AWS refused.
    """
    services = precomputed_services(
        registry, config.project, view=view.name, allow_cache=not is_fresh
    )
    if services:
        _feast.hide_feasts_warnings()
    elif not is_fresh:
        return []
    try:
        declared: list[ServiceSpec] = store.declare_services(
            config, services, view, replace=is_fresh
        )
    except AccessDeniedError as error:
        if is_fresh:
            raise
        # Rows may be written all the same: nobody is answered a vector that is not kept.
        logger.warning("services of %s get no vectors: %s", view.name, error)
        return []
    return declared
