"""A model's archive: its bytes, what it refuses, and a worker that finds other definitions."""

from __future__ import annotations

import hashlib
import json
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from feast import FeatureService, FeatureStore
from repos import REGION, open_repo_config, write_repo_yaml
from served_model import AWS, CUSTOMER, make_manifest, train, views

from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.errors import ConfigError, ServingError
from feast_dynamo_ext.sagemaker.serving.opening import open_handler
from feast_dynamo_ext.sagemaker.serving.package import archive, package_model, unpack
from feast_dynamo_ext.sagemaker.serving.predictors import load_model

FILES = (
    "code/requirements.txt",
    "code/serve_features.py",
    "features/feature_store.yaml",
    "features/registry.db",
    "features/serving.json",
    "features/training_set.json",
    "model.ubj",
)


@pytest.fixture
def store(tmp_path):
    """Definitions alone: no table is made, and none is read."""
    online = {"region": REGION, "manage_tables": "never", "endpoint_url": "http://127.0.0.1:9"}
    return opened(tmp_path, online)


def opened(folder, online):
    config = open_repo_config(folder, project="p", online=online, offline={"region": REGION})
    store = FeatureStore(config=config)
    made = views()
    objects = [CUSTOMER, *made, FeatureService(name="churn", features=made)]
    for one in made:
        store.registry.apply_feature_view(one, "p", commit=False)
    for source in (one.batch_source for one in made):
        store.registry.apply_data_source(source, "p", commit=False)
    objects[-1].infer_features({one.name: one for one in made})
    store.registry.apply_entity(CUSTOMER, "p", commit=False)
    store.registry.apply_feature_service(objects[-1], "p")
    return store


def packaged(store, tmp_path, **given):
    train(tmp_path / "model.ubj")
    more = {"model": str(tmp_path / "model.ubj"), "output": str(tmp_path / "m.tar.gz"), **given}
    return package_model(
        store, more.pop("manifest", None) or make_manifest(store), aws=AWS, **more
    )


def unpacked(tmp_path, name="m.tar.gz"):
    folder = tmp_path / "unpacked"
    folder.mkdir()
    unpack(str(tmp_path / name), folder, AWS)
    return folder


def test_the_archive_is_the_same_for_the_same_input(store, tmp_path):
    first = packaged(store, tmp_path)
    data = (tmp_path / "m.tar.gz").read_bytes()
    again = packaged(store, tmp_path, output=str(tmp_path / "again.tar.gz"))
    assert first.files == FILES
    assert (first.bytes, first.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert again.sha256 == first.sha256
    with tarfile.open(tmp_path / "m.tar.gz") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == list(FILES)
    assert {(one.mtime, one.uid, one.gid, one.uname, one.mode) for one in members} == {
        (0, 0, 0, "", 0o644)
    }
    # What the built-in XGBoost loads is the model alone.
    assert [name for name in FILES if "/" not in name] == ["model.ubj"]
    assert [column.name for column in first.settings.columns] == ["customer_id", "amount"]


@pytest.mark.parametrize(
    ("online", "words"),
    [
        ({"endpoint_url": "http://user:pw@127.0.0.1:9"}, "online_store.endpoint_url"),
        ({"tags": {"db_password": "x"}}, "online_store.tags.db_password"),
    ],
)
def test_no_secret_is_packaged(tmp_path, online, words):
    store = opened(tmp_path, {"region": REGION, "manage_tables": "never", **online})
    with pytest.raises(ConfigError, match=f"`{words}` holds a secret"):
        packaged(store, tmp_path)
    assert not (tmp_path / "m.tar.gz").exists()


def test_definitions_that_have_changed_stop_the_packaging_and_the_start(store, tmp_path):
    manifest = make_manifest(store)
    registry = str(tmp_path / "registry.db")
    packaged(store, tmp_path, live_registry=registry)
    folder = unpacked(tmp_path)
    open_handler(folder).close()

    view = store.get_feature_view("orders")
    view.ttl *= 2
    store.registry.apply_feature_view(view, "p")
    with pytest.raises(
        ServingError, match=r"The registry is not .*: feature view `orders` has ch"
    ):
        packaged(store, tmp_path, manifest=manifest)
    with pytest.raises(ServingError, match=f"The registry {registry} is not what the model was"):
        open_handler(folder)

    store.registry.delete_feature_service("churn", "p")
    with pytest.raises(ServingError, match="feature service `churn`, which the registry does not"):
        packaged(store, tmp_path, manifest=manifest)


def test_a_service_with_other_features_stops_the_packaging(store, tmp_path):
    manifest = make_manifest(store)
    service = FeatureService(name="churn", features=[store.get_feature_view("orders")])
    service.infer_features({"orders": store.get_feature_view("orders")})
    store.registry.apply_feature_service(service, "p")
    with pytest.raises(ServingError, match="feature service `churn` has other features"):
        packaged(store, tmp_path, manifest=manifest)


def test_the_command(store, tmp_path):
    store.config.repo_path = tmp_path
    write_repo_yaml(
        tmp_path,
        project="p",
        registry=str(tmp_path / "registry.db"),
        online={"region": REGION, "manage_tables": "never"},
        offline={"region": REGION},
    )
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "manifest.json").write_text(make_manifest(store).to_json())
    train(tmp_path / "model.ubj")
    given = ["--training-set", str(tmp_path / "set"), "--model", str(tmp_path / "model.ubj")]
    output = str(tmp_path / "m.tar.gz")
    command = ["endpoint", "package", "-c", str(tmp_path), *given, "--output", output]
    done = CliRunner().invoke(main, [*command, "--max-rows", "9", "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["columns"] == ["customer_id", "amount"]
    assert answer["sha256"] == hashlib.sha256((tmp_path / "m.tar.gz").read_bytes()).hexdigest()
    settings = json.loads((unpacked(tmp_path) / "features" / "serving.json").read_text())
    assert (settings["max_rows"], settings["live_registry"]) == (9, None)
    refused = CliRunner().invoke(main, [*command, "--model", str(tmp_path / "nothing")])
    assert (refused.exit_code, "nothing cannot be read" in refused.stderr) == (1, True)


def test_a_store_that_does_not_answer_is_a_503_that_names_nothing(tmp_path):
    # Port 9 of this machine refuses connections.
    online = {"region": REGION, "manage_tables": "never", "endpoint_url": "http://127.0.0.1:9"}
    limits = {"read_deadline_ms": 200, "total_max_retry_attempts": 1}
    store = opened(tmp_path, online | limits)
    packaged(store, tmp_path)
    handler = open_handler(unpacked(tmp_path))
    answer = handler.answer(b'{"customer_id": 1, "amount": 2}', "application/json", None)
    assert answer.status == 503
    assert json.loads(answer.body) == {
        "error": "The features could not be read; try again, the endpoint's log says why."
    }
    assert handler.counters == {"requests": 1, "errors_503": 1}
    handler.close()


class Exploding:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.ubj": b"{}", "b.ubj": b"{}"}, "has 2 files at its top: a.ubj, b.ubj"),
        ({"model.pkl": pickle.dumps(Exploding())}, "Pickles are never loaded"),
        ({"features/x": b"", "a.ubj": b"{}"}, "has a folder `features` already"),
        ({"../out": b""}, "holds `../out`, which is no plain file inside of it"),
        ({}, "holds no file"),
    ],
)
def test_models_that_are_refused(store, tmp_path, files, words):
    job = tmp_path / "job.tar.gz"
    job.write_bytes(archive(files))
    with pytest.raises(ServingError, match=words):
        packaged(store, tmp_path, model=str(job))


def test_a_model_that_takes_other_features_stops_the_start(store, tmp_path):
    manifest = make_manifest(store)
    fewer = replace(manifest, features=manifest.features[:-1])
    made = packaged(store, tmp_path)
    folder = unpacked(tmp_path)
    with pytest.raises(ServingError, match="takes 5 features; the training set has 4"):
        load_model(folder, made.settings, fewer)
    (folder / "model.ubj").write_bytes(pickle.dumps(Exploding()))
    with pytest.raises(ServingError, match="Pickles are never loaded"):
        open_handler(folder)
    (folder / "features" / "registry.db").unlink()
    with pytest.raises(ServingError, match=r"registry\.db is missing"):
        open_handler(folder)


def test_a_model_of_ones_own(store, tmp_path):
    code = tmp_path / "inference.py"
    code.write_text(
        "from pathlib import Path\n"
        "def load(model_dir):\n    global weight\n"
        "    weight = float((Path(model_dir) / 'weight').read_text())\n"
        "def predict(matrix):\n    return matrix[:, 0] * weight\n"
    )
    (tmp_path / "weight").write_text("2.5")
    made = packaged(store, tmp_path, model=str(tmp_path / "weight"), code=code)
    assert "code/inference.py" in made.files
    model = load_model(unpacked(tmp_path), made.settings, make_manifest(store))
    assert model.predict(np.array([[2.0, 9.0]])).tolist() == [5.0]
