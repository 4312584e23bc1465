"""What the commands do, in Python: two training sets of a feature repo."""

from pathlib import Path

from feast import FeatureStore

from feast_dynamo_ext.duckdb_connection import Limits
from feast_dynamo_ext.sagemaker import load_training_set, verify
from feast_dynamo_ext.sagemaker.rebuild import rebuild
from feast_dynamo_ext.sagemaker.set_difference import difference
from feast_dynamo_ext.sagemaker.set_inspection import report_html
from feast_dynamo_ext.sagemaker.set_verification import changed_sources

store = FeatureStore(".")
aws, limits = store.config.offline_store.aws(), Limits("1GB")
june, july = (load_training_set(f"training/{month}", aws) for month in ("june", "july"))

print(verify(june.output, aws).ok, changed_sources(june.manifest, aws, store))
print(difference(june, july, aws, limits).rows)
print(rebuild(store, june.output, "training/june-again").same_bytes)
Path("june.html").write_text(report_html(june, aws, limits, store))
