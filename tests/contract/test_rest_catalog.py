"""History tables in a catalog that speaks Iceberg's REST protocol."""

from __future__ import annotations

import datetime as dt
import json
import ssl
import time

import pandas as pd
import pyarrow as pa
import pytest
from certificates import certificate_of_localhost
from click.testing import CliRunner
from feast import FeatureStore
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from iceberg_rest import LOST, SECRET, TOKEN, TWICE, WAREHOUSE, rest_catalog
from repos import REGION, repo_config, write_repo_yaml
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    ConfigError,
    CredentialsError,
    SourceNotFoundError,
    SourceReadError,
)
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.parquet.iceberg.catalog import CatalogAddress, file_settings, opened
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.expire import expire
from feast_dynamo_ext.parquet.iceberg.snapshot_files import tidy_after_append
from feast_dynamo_ext.parquet.iceberg.snapshots import tag
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout, create_table
from feast_dynamo_ext.parquet.iceberg.view_table import drop, readers_of
from feast_dynamo_ext.parquet.source import ParquetSource

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
COLUMNS = pa.schema(
    [
        ("cid", pa.int64()),
        ("event_timestamp", pa.timestamp("us", "UTC")),
        ("total", pa.float64()),
    ]
)


def rows(*totals):
    moments = [START + dt.timedelta(hours=hour) for hour in range(len(totals))]
    return pa.table({"cid": [1] * len(totals), "event_timestamp": moments, "total": totals}).cast(
        COLUMNS
    )


def source_at(uri, **more):
    settings = {
        "name": "orders",
        "endpoint": uri,
        "warehouse": WAREHOUSE,
        "namespace": "shop",
        "table": "orders",
        "timestamp_field": "event_timestamp",
        "token_env_var": "ICE_TOKEN",
    }
    return IcebergSource(**{**settings, **more})


def handle_at(folder, uri, **more):
    return TableHandle.from_source(source_at(uri, **more), repo_config(folder, region=REGION))


def made(handle):
    """The table of a handle, new and without rows."""
    catalog = opened(handle.address, handle.settings)
    create_table(catalog, handle.name, COLUMNS, TableLayout(("cid",), "event_timestamp", None, ""))
    return handle


def totals(handle):
    return sorted(handle.load().scan().to_arrow().column("total").to_pylist())


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("ICE_TOKEN", TOKEN)


@pytest.fixture
def server(tmp_path):
    with rest_catalog(tmp_path) as found:
        yield found


@pytest.fixture
def handle(server, tmp_path):
    """A handle of a table without rows, of which no request is counted."""
    found = made(handle_at(tmp_path, server.uri))
    server.requests.clear()
    return found


# All that a person does with a table


def run(folder, *arguments):
    given = ["table", *arguments, "-c", str(folder), "--json"]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def seen(store, *hours):
    frame = pd.DataFrame(
        {"cid": 1, "event_timestamp": [START + dt.timedelta(hours=hour) for hour in hours]}
    )
    found = store.get_historical_features(frame, ["orders:total"]).to_arrow()
    return found.column("total").to_pylist()


@pytest.mark.parametrize("warehouse", [{"warehouse": WAREHOUSE}, {}])
def test_a_table_is_made_written_read_tended_and_dropped(server, tmp_path, warehouse):
    catalog = {"type": "rest", "uri": server.uri, "token_env_var": "ICE_TOKEN", **warehouse}
    aws = {"region": REGION}
    write_repo_yaml(tmp_path, project="shop", online=aws, offline={**aws, "catalog": catalog})
    store = FeatureStore(str(tmp_path))
    store.registry.apply_entity(CUSTOMER, store.project)
    view = customer_view(source=parquet_files(tmp_path / "none", name="orders_history"))
    store.registry.apply_feature_view(view, store.project)
    created = run(tmp_path, "create", "orders", "--partition", "month")
    assert created["table"] == "shop.orders"
    line, _, expression = created["source"].partition("\n\n")
    names: dict = {}
    exec(line, names)  # noqa: S102 - what a person pastes
    view = customer_view(source=eval(expression, names))  # noqa: S307
    store.registry.apply_feature_view(view, store.project)

    for total in (1.0, 2.0, 3.0):
        store.write_to_offline_store("orders", rows(0.5, total).to_pandas())
    assert seen(store, 0, 5) == [0.5, 3.0]
    run(tmp_path, "tag", "orders", "before")
    (report,) = run(tmp_path, "optimize", "--all")
    assert [part["files_after"] for part in report["partitions"]] == [1]
    assert seen(store, 0, 5) == [0.5, 3.0]
    report = run(tmp_path, "expire", "orders", "--older-than", "0s")
    assert report["kept"] == 2  # the current one, and the tag's
    assert seen(store, 0, 5) == [0.5, 3.0]
    assert len(run(tmp_path, "history", "orders")) == 2
    store.write_to_offline_store("orders", rows(7.0).to_pandas())
    assert seen(store, 0, 5) == [7.0, 3.0]
    run(tmp_path, "rollback", "orders", "before")
    assert seen(store, 0, 5) == [0.5, 3.0]
    everywhere = ("--expire-now", "--drop-tags")
    assert run(tmp_path, "erase", "orders", "--key", "cid=1", *everywhere)["rows"] == 6
    assert seen(store, 0, 5) == [None, None]

    assert run(tmp_path, "drop", "orders", "--yes", "--purge")["deleted"] > 3
    assert server.tables.list_tables("shop") == []
    assert list(tmp_path.glob("served/**/*.parquet")) == []


def test_feast_sees_the_columns(server, handle, tmp_path):
    """By Feast's own client it would not: that asks no server for its prefix."""
    source, config = source_at(server.uri), repo_config(tmp_path, region=REGION)
    store = S3ParquetOfflineStore()
    assert store.get_table_column_names_and_types_from_data_source(config, source) == [
        ("cid", "long"),
        ("event_timestamp", "timestamptz"),
        ("total", "double"),
    ]
    assert store.validate_data_source(config, source) is not None


# Commits


def test_a_commit_after_another_writers_is_made_once(server, handle):
    def another():
        table = server.tables.load_table("shop.orders")
        sequence = pa.array([7], pa.int64())
        table.append(rows(9.0).append_column("_feast_sequence", sequence))

    server.script["POST table"] = [another]
    handle.append(rows(1.0, 2.0))
    assert server.count("POST table") == 2
    assert totals(handle) == [1.0, 2.0, 9.0]


@pytest.mark.parametrize("wanted", [LOST, TWICE])
def test_a_commit_whose_answer_is_not_its_own_is_made_once(server, handle, wanted):
    server.script["POST table"] = [wanted]
    handle.append(rows(1.0, 2.0))
    assert server.count("POST table") == 1
    assert totals(handle) == [1.0, 2.0]
    handle.append(rows(3.0))
    assert totals(handle) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("wanted", [409, 503, LOST])
def test_upkeep_after_an_append_does_not_fail_it(server, handle, wanted):
    for total in (1.0, 2.0):
        handle.append(rows(total))
    server.script["POST table"] = [wanted]
    tidy_after_append(handle.load(), handle.settings, most=1, kept=1)
    assert server.script["POST table"] == []
    assert len(handle.load().snapshots()) == (1 if wanted == LOST else 2)
    assert totals(handle) == [1.0, 2.0]


@pytest.mark.parametrize("status", [409, 500, 503, 504])
def test_a_commit_that_is_refused_for_the_moment_is_tried_again(server, handle, status):
    server.script["POST table"] = [status]
    handle.append(rows(1.0))
    assert server.count("POST table") == 2
    assert totals(handle) == [1.0]


@pytest.mark.parametrize(
    ("answers", "kind"),
    [([401, 401], CredentialsError), ([403], AccessDeniedError)],  # a token is renewed once
)
def test_a_commit_that_may_not_be_leaves_nothing(server, handle, tmp_path, answers, kind):
    server.script["POST table"] = [*answers]
    with pytest.raises(kind, match=rf"{server.uri}.* shop\.orders"):
        handle.append(rows(1.0))
    assert server.count("POST table") == len(answers)
    assert list(tmp_path.glob("served/**/*.parquet")) == []
    assert totals(handle) == []


def test_files_of_a_commit_that_may_still_come_are_kept(server, handle, tmp_path):
    server.script["POST table"] = [504, 403]
    with pytest.raises(SourceReadError, match=r"got no answer.* may be in the table"):
        handle.append(rows(1.0), "a-commit")
    assert len(list(tmp_path.glob("served/**/*.parquet"))) == 1


def test_the_table_is_looked_up_among_all_its_snapshots(server, handle):
    """A server that would rather send those with a name alone."""
    server.settings["overrides"] = {"prefix": "of-prod", "snapshot-loading-mode": "refs"}
    catalog = opened(handle.address, handle.settings)
    assert catalog.properties["snapshot-loading-mode"] == "all"


def test_what_a_tag_names_is_kept(handle):
    handle.append(rows(1.0))
    handle.append(rows(2.0))
    first = handle.load().snapshots()[0].snapshot_id
    tag(handle, "first", first)
    handle.append(rows(3.0))
    second = handle.load().snapshots()[1].snapshot_id
    report = expire(handle, older_than=dt.datetime.now(dt.timezone.utc))
    assert report.expired == (second,)
    assert handle.load().scan(snapshot_id=first).to_arrow().num_rows == 1


def test_what_is_tagged_while_snapshots_are_listed_is_kept(server, handle):
    for total in (1.0, 2.0):
        handle.append(rows(total))
    first = handle.load().snapshots()[0].snapshot_id

    def another():
        server.tables.load_table(handle.name).manage_snapshots().create_tag(first, "it").commit()

    server.script["GET table"] = [None, another]
    report = expire(handle, older_than=dt.datetime.now(dt.timezone.utc))
    assert (report.expired, handle.load().refs()["it"].snapshot_id) == ((), first)


# What does not answer, or says no


def test_a_token_that_is_wrong_is_never_shown(server, tmp_path, monkeypatch):
    monkeypatch.setenv("ICE_TOKEN", "hush-hush")
    server.says = lambda headers: f"who is {headers['Authorization']}?"
    with pytest.raises(CredentialsError) as caught:
        handle_at(tmp_path, server.uri).load()
    assert str(caught.value) == (
        f"Source `orders`: the catalog at {server.uri} does not know who asks for shop.orders: "
        "NotAuthorizedException: who is Bearer ***?. Check the token in the environment variable "
        "`ICE_TOKEN`."
    )


def test_a_client_asks_for_its_token(server, tmp_path):
    def handle(credential):
        asking = {"credential": credential, "oauth2-server-uri": f"{server.uri}/v1/oauth/tokens"}
        return handle_at(tmp_path, server.uri, token_env_var=None, catalog_properties=asking)

    made(handle(SECRET)).append(rows(1.0))
    assert totals(handle(SECRET)) == [1.0]
    words = (
        r"invalid_client: \*\*\*\?\. Check the `token` or the `credential` among its properties"
    )
    with pytest.raises(CredentialsError, match=words):
        handle("me:hush").load()


def test_a_page_in_the_place_of_an_answer_is_named(scripted_http, tmp_path):
    uri = scripted_http([(200, b"<html>Please log in</html>")])
    with pytest.raises(SourceReadError, match=rf"the catalog at {uri}: .*`endpoint`"):
        handle_at(tmp_path, uri).load()


def test_without_a_token_the_setting_is_named(server, tmp_path):
    with pytest.raises(CredentialsError, match=r"variable of a token as `token_env_var`"):
        handle_at(tmp_path, server.uri, token_env_var=None).load()


@pytest.mark.parametrize("token", ["a b", "hush\nhush", "h\u00fcsh"])
def test_a_token_that_is_none_is_refused_unseen(server, tmp_path, monkeypatch, token):
    monkeypatch.setenv("ICE_TOKEN", token)
    with pytest.raises(ConfigError, match="`ICE_TOKEN` holds is no token") as caught:
        handle_at(tmp_path, server.uri).load()
    assert token not in str(caught.value)
    assert server.requests == []


def test_a_line_break_after_a_token_is_none_of_it(server, handle, monkeypatch):
    monkeypatch.setenv("ICE_TOKEN", f"{TOKEN}\n")
    assert totals(handle) == []


def test_there_is_no_table(server, tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"`orders`: the catalog has no table shop\."):
        handle_at(tmp_path, server.uri).load()


@pytest.mark.parametrize("operation", ["GET config", "GET table"])
def test_a_server_that_is_down_is_named(server, handle, operation):
    server.script[operation] = [503]
    words = rf"`orders`: the catalog at {server.uri}: .* shop\.orders .*ServiceUnavailable.* runs"
    with pytest.raises(SourceReadError, match=words):
        handle.load()


def test_what_cannot_be_reached_is_named_without_its_password(tmp_path):
    with pytest.raises(SourceReadError, match=r"at http://127\.0\.0\.1:1/x: .* runs") as caught:
        handle_at(tmp_path, "http://me:hush@127.0.0.1:1/x").load()
    assert "hush" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up(server, handle):
    quick = {"rest.read-timeout-s": "0.2"}
    handle = TableHandle(
        CatalogAddress(
            "rest", "feast_iceberg", server.uri, WAREHOUSE, "ICE_TOKEN", quick, "Source `orders`"
        ),
        handle.name,
        handle.settings,
    )
    server.script["GET table"] = [lambda: time.sleep(0.6)]
    with pytest.raises(SourceReadError, match=r"ReadTimeout"):
        handle.load()


@pytest.mark.parametrize("endpoint", ["", "catalog.example.com", "ftp://x"])
def test_an_endpoint_that_is_none_is_refused(tmp_path, endpoint):
    with pytest.raises(ConfigError, match=r"`orders`: .*endpoint"):
        handle_at(tmp_path, endpoint).load()


def test_another_warehouse_is_another_catalog(server, handle, tmp_path):
    with pytest.raises(SourceReadError, match=r"no warehouse \['dev'\].* `warehouse`"):
        handle_at(tmp_path, server.uri, warehouse="dev").load()
    config = repo_config(tmp_path, region=REGION)
    views = [
        customer_view(name, source_at(server.uri, warehouse=warehouse))
        for name, warehouse in {"a": WAREHOUSE, "b": "dev"}.items()
    ]
    assert readers_of(views, handle, config) == ["a"]


def test_a_certificate_of_the_configured_bundle_is_trusted(tmp_path, monkeypatch):
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # which come first
        monkeypatch.delenv(name, raising=False)
    certificate, key = certificate_of_localhost(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with rest_catalog(tmp_path, tls=context) as server:
        with pytest.raises(SourceReadError, match=rf"{server.uri}: .*SSLError"):
            handle_at(tmp_path, server.uri).load()
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        handle = made(handle_at(tmp_path, server.uri))
        handle.append(rows(1.0))
        assert totals(handle) == [1.0]


def test_requests_are_signed_with_the_credentials_of_the_config(server, tmp_path):
    """As for S3 Tables and Glue's endpoint."""
    server.scheme = "AWS4-HMAC-SHA256 Credential=test/"
    signed = {"rest.sigv4-enabled": "true", "rest.signing-name": "s3tables"}
    found = handle_at(tmp_path, server.uri, token_env_var=None, catalog_properties=signed)
    made(found).append(rows(1.0))
    assert totals(found) == [1.0]
    assert {"s3tables" in headers["Authorization"] for headers in server.headers} == {True}
    assert {REGION in headers["Authorization"] for headers in server.headers} == {True}


# A server that forbids


def test_a_namespace_that_is_there_is_not_made(server, tmp_path):
    """Whoever may make tables in it may not make others."""
    server.tables.create_namespace("shop")
    server.script["POST namespaces"] = [403]
    made(handle_at(tmp_path, server.uri))
    assert server.tables.list_tables("shop") == [("shop", "orders")]


def test_a_server_that_drops_tables_with_their_files_alone(server, handle):
    """As S3 Tables does."""
    server.script["DELETE table"] = [400]
    handle.append(rows(1.0))
    assert drop(handle, purge=True) == 0
    assert server.count("DELETE table") == 2
    assert server.tables.list_tables("shop") == []


# Credentials of files, given out by the server


@pytest.fixture
def vending(tmp_path, bucket, moto_endpoint):
    """A server whose tables are on S3, which gives out all that is needed to reach them."""
    keys = {"s3.access-key-id": "VENDED1", "s3.secret-access-key": "x"}
    own = {**keys, "s3.endpoint": moto_endpoint, "s3.region": REGION}
    with rest_catalog(tmp_path, f"s3://{bucket}/served", **own) as server:
        server.config = own
        yield server


def numbers_of(source, config):
    batches = [
        batch.column("total") for batch in ParquetSource.open(source, config).scan(["total"])
    ]
    return sorted(pa.chunked_array(batches).to_pylist())


@pytest.mark.parametrize("is_by_prefix", [False, True])
def test_vended_credentials_reach_the_files(vending, bucket, tmp_path, monkeypatch, is_by_prefix):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    if is_by_prefix:
        prefix = f"s3://{bucket}/"
        vending.storage_credentials = [{"prefix": prefix, "config": vending.config}]
        vending.config = {}
    handle = made(handle_at(tmp_path, vending.uri))
    handle.append(rows(1.0, 2.0))
    config = repo_config(tmp_path, region=REGION)
    assert numbers_of(source_at(vending.uri), config) == [1.0, 2.0]
    assert vending.headers[-1]["X-Iceberg-Access-Delegation"] == "vended-credentials"
    assert drop(handle, purge=True) > 3
    assert vending.tables.list_tables("shop") == []


@pytest.mark.parametrize(
    "refusal",
    [
        {"credential_vending": False},
        {"catalog_properties": {"header.X-Iceberg-Access-Delegation": ""}},
    ],
)
def test_vended_credentials_that_are_not_wanted_are_not_taken(
    vending, tmp_path, monkeypatch, refusal
):
    handle = made(handle_at(tmp_path, vending.uri))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    handle.append(rows(1.0))
    source = source_at(vending.uri, **refusal)
    with pytest.raises(CredentialsError, match="no AWS credentials were found"):
        numbers_of(source, repo_config(tmp_path, region=REGION))
    assert "X-Iceberg-Access-Delegation" not in vending.headers[-1]


def test_vended_credentials_are_renewed_before_they_expire(vending, tmp_path):
    def expire_in(minutes):
        moment = time.time() + 60 * minutes
        vending.config["s3.session-token-expires-at-ms"] = str(int(moment * 1000))

    handle = made(handle_at(tmp_path, vending.uri))
    expire_in(5)
    table = handle.load()
    vending.config["s3.access-key-id"] = "VENDED2"
    expire_in(60)
    credentials = file_settings(table, handle.settings).credentials
    assert credentials.get_frozen_credentials().access_key == "VENDED2"
    before = vending.count("GET table")
    assert credentials.get_frozen_credentials().access_key == "VENDED2"
    assert vending.count("GET table") == before
