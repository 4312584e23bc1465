"""Scores the entities of a cohort: their features, and a model's predictions, in chunks.

::

    for table in score_cohort(store, "purchases", service, model, category="books"):
        ...  # a pyarrow.Table: customer_id, the features, prediction
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.cohorts import cohort
from feast_dynamo_ext.columns import join_keys
from feast_dynamo_ext.errors import ConfigError, ServingError
from feast_dynamo_ext.range_read import AS_TEXT, arrow_type

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from feast import FeatureService, FeatureStore

    from feast_dynamo_ext.cohorts import Cohort

    Model = Callable[[pd.DataFrame], Any] | Any

PREDICTION = "prediction"


def score_cohort(
    store: FeatureStore,
    view: str,
    features: Sequence[str] | FeatureService,
    model: Model,
    *,
    chunk: int = 100,
    write_to: str | None = None,
    limit: int | None = None,
    start: datetime | None = None,
    token: str | None = None,
    **by: Any,
) -> CohortScores:
    """Features and predictions of all entities of a cohort, in tables of `chunk` entities.

    ::

        scores = score_cohort(store, "purchases", service, model, category="books")
        for table in scores:
            keep(table, scores.token)  # after a failure: score_cohort(..., token=the last one)

    A table has the join keys, the features in the order of the references or of the service, and
    `prediction`. An entity that has no row in a view has nulls for its features.

    Args:
        store: the feature store.
        view: the view whose cohort it is.
        features: references `view:feature`, or a feature service.
        model: a callable, or an object with `predict`: takes a pandas data frame of the features,
            a row an entity, and gives a prediction (or a row of them) for each.
        chunk: entities that are read and scored together.
        write_to: a feature view with one feature, in which the predictions of each chunk are
            written online, before its table is given; their event time is that moment.
        limit: see `cohort`.
        start: see `cohort`.
        token: `token` of an earlier one: go on after the last table that it gave.
        by: one feature and its value, see `cohort`.

    Raises:
        ConfigError: as `cohort`; `write_to` is no view that takes predictions.
        FeatureViewNotFoundException: Feast's, of an unknown view.
    """
    if not isinstance(chunk, int) or chunk < 1:
        raise ConfigError("`chunk` must be a whole number of at least 1.")
    entities = cohort(store, view, limit=limit, start=start, token=token, **by)
    predict = getattr(model, "predict", model)
    if not callable(predict):
        raise ConfigError("`model` is neither a callable nor has it `predict`.")
    target = None if write_to is None else _Target.from_view(store, write_to)
    return CohortScores(store, entities, features, predict, chunk, target)


class CohortScores(Iterator[pa.Table]):
    """Tables of entities of a cohort, their features and predictions; see `score_cohort`.

    Attributes:
        token: the place after the last table that was given; None before the first one.
    """

    def __init__(
        self,
        store: FeatureStore,
        entities: Cohort,
        features: Sequence[str] | FeatureService,
        predict: Callable[[Any], Any],
        chunk: int,
        target: _Target | None,
    ) -> None:
        """Nothing is read yet."""
        self._store, self._entities, self._chunk = store, entities, chunk
        self._features: Any = list(features) if isinstance(features, (list, tuple)) else features
        self._predict, self._target = predict, target
        self._taken: list[dict[str, Any]] = []
        self._types = _types_of(store, self._features)
        self.token: str | None = entities.token

    def __next__(self) -> pa.Table:
        """The next table; where it fails, the same entities are tried again at the next call.

        Raises:
            ServingError: the model gave another number of predictions.
            FeastDynamoError: as `Cohort` and get_online_features; what the model raises.
        """
        missing = self._chunk - len(self._taken)
        for entity in itertools.islice(self._entities, missing):
            self._taken.append(entity)  # kept, where a later page fails
        if not self._taken:
            raise StopIteration
        table = self._scored(self._taken)
        if self._target is not None:
            self._target.write(self._store, table)
        self._taken, self.token = [], self._entities.token
        return table

    def _scored(self, entities: list[dict[str, Any]]) -> pa.Table:
        import pandas as pd

        answered = self._store.get_online_features(self._features, entities).to_dict()
        keys = list(entities[0])
        # Feast answers the features of a view in any order.
        names = [name for name in {**self._types, **answered} if name in answered.keys() - {*keys}]
        if PREDICTION in names:
            raise ConfigError(
                f"A feature is called `{PREDICTION}`, as the column of predictions is. Leave it "
                "out of the features."
            )
        predicted = self._predict(pd.DataFrame({name: answered[name] for name in names}))
        columns = {name: pa.array([entity[name] for entity in entities]) for name in keys}
        columns |= {name: self._column(name, answered[name]) for name in names}
        return pa.table({**columns, PREDICTION: _predictions(predicted, len(entities))})

    def _column(self, name: str, values: Sequence[Any]) -> pa.Array:
        kind = self._types.get(name)
        if kind is None:
            return pa.array(values)
        if kind in AS_TEXT:
            values = [None if each is None else AS_TEXT[kind](each) for each in values]
        return pa.array(values, arrow_type(kind))


def _predictions(predicted: Any, count: int) -> pa.Array:
    """Predictions as a column; of several an entity as lists.

    Raises:
        ServingError: there is not one for each entity.
    """
    found = np.asarray(predicted)
    if found.shape[:1] != (count,):
        raise ServingError(
            f"The model gave {found.shape} for {count} rows: it must give one prediction for each."
        )
    return pa.array(found if found.ndim == 1 else found.tolist())


def _types_of(store: FeatureStore, features: Any) -> dict[str, str]:
    """Names of the declared value types of features, by name."""
    projections = getattr(features, "feature_view_projections", None)
    if projections is not None:
        fields = [field for projection in projections for field in projection.features]
    else:
        fields = []
        for reference in features if isinstance(features, list) else ():
            name, _, feature = str(reference).partition(":")
            view = store.registry.get_any_feature_view(
                name.partition("@")[0], store.project, allow_cache=True
            )
            fields += [field for field in view.features if field.name == feature]
    return {field.name: field.dtype.to_value_type().name for field in fields}


@dataclass(frozen=True)
class _Target:
    """The feature view that takes predictions.

    Attributes:
        view: its name.
        feature: its one feature.
        keys: its join keys.
        times: the columns of event time and created time.
    """

    view: str
    feature: str
    keys: tuple[str, ...]
    times: tuple[str, ...]

    @classmethod
    def from_view(cls, store: FeatureStore, name: str) -> _Target:
        """Of a view of the registry.

        Raises:
            ConfigError: it has not one feature.
        """
        view = store.registry.get_feature_view(name, store.project, allow_cache=True)
        if len(view.features) != 1:
            raise ConfigError(
                f"Feature view `{name}` of `write_to` has {len(view.features)} features. "
                "Predictions are written to a view with one."
            )
        source: Any = view.batch_source
        times = (source.timestamp_field, source.created_timestamp_column)
        return cls(name, view.features[0].name, join_keys(view), tuple(filter(None, times)))

    def write(self, store: FeatureStore, table: pa.Table) -> None:
        """Write the predictions of a table online."""
        lacking = [key for key in self.keys if key not in table.column_names]
        if lacking:
            raise ConfigError(
                f"Feature view `{self.view}` of `write_to` has the join key `{lacking[0]}`, which "
                "the entities of the cohort lack."
            )
        frame = table.select([*self.keys, PREDICTION]).to_pandas()
        frame = frame.rename(columns={PREDICTION: self.feature})
        for column in self.times:
            frame[column] = datetime.now(tz=timezone.utc)
        store.write_to_online_store(self.view, df=frame)
