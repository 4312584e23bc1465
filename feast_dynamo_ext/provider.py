"""Feast's provider: wires the online store, the offline store, materialization and training sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feast.infra.passthrough_provider import PassthroughProvider

if TYPE_CHECKING:
    from feast.infra.compute_engines.base import ComputeEngine


class DynamoProvider(PassthroughProvider):
    """Feast's passthrough provider with this package's compute engine as the default."""

    @property
    def batch_engine(self) -> ComputeEngine:
        """The engine of `feast materialize`: ours, unless feature_store.yaml names another."""
        if self._batch_engine is None and self.repo_config.batch_engine_config == "local":
            from feast_dynamo_ext.materialize.engine import DynamoComputeEngine

            self._batch_engine = DynamoComputeEngine(
                repo_config=self.repo_config,
                offline_store=self.offline_store,
                online_store=self.online_store,
            )
        return super().batch_engine
