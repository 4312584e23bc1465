"""What `feast plan` gets to know of tables."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast import FeatureStore
from feast.infra.infra_object import InfraObject
from feast.protos.feast.core.InfraObject_pb2 import InfraObject as InfraObjectProto

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from feast import RepoConfig
    from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto

    from feast_dynamo_ext.dynamo.tables.table import TablePlan

logger = logging.getLogger(__name__)


class DynamoTable(InfraObject):
    """A table, as Feast's plan lists it.

    Attributes:
        view: the feature view it keeps.
        action: what `feast apply` would do: `create`, `change`, `keep`, or `unknown` where tables
            are never looked at.
        changes: of a table to be changed, each setting with what it is and what it will be.
    """

    def __init__(
        self, name: str, view: str, action: str = "unknown", changes: tuple[str, ...] = ()
    ) -> None:
        super().__init__(name)
        self.view = view
        self.action = action
        self.changes = changes

    @classmethod
    def from_plan(cls, plan: TablePlan) -> DynamoTable:
        """The object for what is planned of a table."""
        action = "create" if not plan.exists else "change" if plan.changes else "keep"
        return cls(plan.spec.name, plan.spec.view, action, tuple(map(str, plan.changes)))

    def to_infra_object_proto(self) -> InfraObjectProto:
        """The object as Feast's registry keeps it."""
        return InfraObjectProto(
            infra_object_class_type=f"{__name__}.{type(self).__name__}",
            custom_infra=InfraObjectProto.CustomInfra(field=self.to_proto()),
        )

    def to_proto(self) -> bytes:
        """Name and view as JSON; what is to be done is of the moment and not kept."""
        return json.dumps({"name": self.name, "view": self.view}).encode()

    @staticmethod
    def from_infra_object_proto(infra_object_proto: InfraObjectProto) -> DynamoTable:
        """The object from the registry."""
        return DynamoTable.from_proto(infra_object_proto.custom_infra.field)

    @staticmethod
    def from_proto(infra_object_proto: bytes) -> DynamoTable:
        """The object from `to_proto`."""
        kept = json.loads(infra_object_proto)
        return DynamoTable(kept["name"], kept.get("view", ""))

    def update(self) -> None:
        """Nothing: the store's own `update` makes all tables, with the credentials to do so."""

    def teardown(self) -> None:
        """Nothing: the store's own `update` and `teardown` delete tables."""


@dataclass(frozen=True)
class PlannedView:
    """As much of a view in a registry's proto as its table depends on."""

    name: str
    tags: dict[str, str]
    online: bool
    current_version_number: int | None
    projection: None = None


def planned_views(registry: RegistryProto) -> Iterator[PlannedView]:
    """The views of a registry that may have a table; user functions in it are not loaded."""
    for view in (*registry.feature_views, *registry.stream_feature_views, *registry.label_views):
        yield _planned(view, online=getattr(view.spec, "online", True))
    for view in registry.on_demand_feature_views:
        yield _planned(view, online=view.spec.write_to_online_store)


@dataclass(frozen=True)
class RegisteredViews:
    """The views of a project that may have a table, as the registry has them now.

    Attributes:
        views: one version of each is the current one.
        registry: Feast's.
        project: its project.
    """

    views: Sequence[Any]
    registry: Any
    project: str

    @classmethod
    def of_repo(cls, config: RepoConfig) -> RegisteredViews:
        """Read the registry of a repo anew."""
        store = FeatureStore(repo_path=str(config.repo_path or "."), config=config)
        computed = store.list_on_demand_feature_views()
        views = (
            *store.list_feature_views(),
            *store.list_stream_feature_views(),
            *store.list_label_views(),
            *(view for view in computed if view.write_to_online_store),
        )
        by_name = {view.name: view for view in views}
        return cls(list(by_name.values()), store.registry, config.project)

    def versions(self, view: Any) -> list[PlannedView]:
        """All versions of a view that may have a table, the first one first."""
        current = getattr(view, "current_version_number", None) or 0
        try:
            records = self.registry.list_feature_view_versions(view.name, self.project)
        except NotImplementedError:  # a registry without a history of views
            records = []
        numbers = {0, current, *(record["version_number"] for record in records)}
        tags = dict(getattr(view, "tags", None) or {})
        return [PlannedView(view.name, tags, True, number) for number in sorted(numbers)]

    def materialized_until(self) -> dict[str, datetime]:
        """The newest event time that each view is materialized until, by its name."""
        return {
            view.name: max(end for _, end in view.materialization_intervals)
            for view in self.views
            if getattr(view, "materialization_intervals", None)
        }


def _planned(view: Any, *, online: bool) -> PlannedView:
    version = view.meta.current_version_number or None
    return PlannedView(view.spec.name, dict(view.spec.tags), online, version)


def say_plan(plans: Sequence[TablePlan], gone: Iterable[tuple[str, str]], on_remove: str) -> None:
    """Log what `feast apply` would do to tables; Feast's own plan shows its own stores' alone.

    Args:
        plans: what is planned of the tables of views.
        gone: table and name of views that are no more.
        on_remove: what happens to those tables.
    """
    for plan in plans:
        for skipped in plan.skipped:
            logger.warning(
                "table %s: `%s` is not compared: %s",
                plan.spec.name,
                skipped.setting,
                skipped.reason,
            )
        if not plan.exists:
            logger.info("would create table %s (feature view %s)", plan.spec.name, plan.spec.view)
        for change in plan.changes:
            logger.info("would change table %s: %s", plan.spec.name, change)
    for table, view in gone:
        verb = "delete" if on_remove == "delete" else "keep"
        logger.info("would %s table %s (feature view %s is gone)", verb, table, view)
    created = sum(not plan.exists for plan in plans)
    changed = sum(bool(plan.changes) for plan in plans)
    logger.info(
        "DynamoDB tables: %d to create, %d to change, %d as they should be. (Feast's line on "
        "infrastructure does not count them.)",
        created,
        changed,
        len(plans) - created - changed,
    )
