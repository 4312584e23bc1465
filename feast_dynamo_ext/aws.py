"""The only module that builds AWS sessions, clients and S3 filesystems.

botocore resolves credentials, region and endpoints (profiles, role_arn, SSO, instance and
container credentials, ``AWS_ENDPOINT_URL`` and ``AWS_ENDPOINT_URL_<SERVICE>``); whatever it
resolves is what every part of this package uses, the S3 filesystem of pyarrow included.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies

import boto3
import botocore
from botocore import exceptions as boto_errors
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    Credentials,
    DeferredRefreshableCredentials,
    RefreshableCredentials,
)
from botocore.httpsession import get_cert_path
from botocore.loaders import Loader, create_loader
from botocore.model import ServiceModel
from botocore.utils import get_environ_proxies, normalize_url_path, parse_to_aware_datetime

from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsError,
    AwsUnavailableError,
    ConfigError,
    CredentialsError,
    ResourceNotFoundError,
    ThrottledError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from botocore.config import Config
    from botocore.credentials import ReadOnlyCredentials
    from pyarrow.fs import FileSystem

    from feast_dynamo_ext.s3_filesystem import RenewedS3

# What this package uses of botocore that botocore does not document, all of it in this module. A
# test asks the installed botocore for each; `Session()` is an object of that class.
BOTOCORE_INTERNALS = (
    "boto3:Session()._session",
    "botocore.configprovider:ConfiguredEndpointProvider.provide",
    "botocore.credentials:AssumeRoleCredentialFetcher.fetch_credentials",
    "botocore.credentials:Credentials",
    "botocore.credentials:DeferredRefreshableCredentials",
    "botocore.credentials:RefreshableCredentials.create_from_metadata",
    "botocore.httpsession:get_cert_path",
    "botocore.loaders:create_loader",
    "botocore.model:OperationModel.idempotent_members",
    "botocore.model:ServiceModel.operation_model",
    "botocore.model:ServiceModel.operation_names",
    "botocore.model:StructureShape.is_tagged_union",
    "botocore.model:StructureShape.required_members",
    "botocore.session:Session()._credentials",
    "botocore.session:Session().create_client",
    "botocore.session:Session().full_config",
    "botocore.session:Session().get_config_variable",
    "botocore.session:Session().get_scoped_config",
    "botocore.session:Session().register_component",
    "botocore.utils:get_environ_proxies",
    "botocore.utils:normalize_url_path",
    "botocore.utils:parse_to_aware_datetime",
)

MULTIPLE_CHOICES = 300
REFUSED = frozenset({403, 407})
"""What proxies and endpoints of a VPC answer, with a page, to those who may not pass."""
MOST_OF_TAG = 32

CHATTY_LOGGERS = ("botocore.credentials", "botocore.configprovider")

# One table from service error code to our exception; anything else is a plain AwsError.
ERROR_BY_CODE: dict[str, type[AwsError]] = {
    "UnrecognizedClientException": CredentialsError,
    "InvalidClientTokenId": CredentialsError,
    "InvalidAccessKeyId": CredentialsError,
    "InvalidSignatureException": CredentialsError,
    "SignatureDoesNotMatch": CredentialsError,
    "IncompleteSignatureException": CredentialsError,
    "MissingAuthenticationTokenException": CredentialsError,
    "ExpiredToken": CredentialsError,
    "ExpiredTokenException": CredentialsError,
    "RequestExpired": CredentialsError,
    "AccessDenied": AccessDeniedError,
    "AccessDeniedException": AccessDeniedError,
    "403": AccessDeniedError,
    "ResourceNotFoundException": ResourceNotFoundError,
    "EntityNotFoundException": ResourceNotFoundError,
    "NoSuchBucket": ResourceNotFoundError,
    "NoSuchKey": ResourceNotFoundError,
    "404": ResourceNotFoundError,
    "ProvisionedThroughputExceededException": ThrottledError,
    "RequestLimitExceeded": ThrottledError,
    "ThrottlingException": ThrottledError,
    "Throttling": ThrottledError,
    "TooManyRequestsException": ThrottledError,
    "LimitExceededException": ThrottledError,
    "ConcurrentRunsExceededException": ThrottledError,
    "SlowDown": ThrottledError,
    "InternalServerError": AwsUnavailableError,
    "InternalFailure": AwsUnavailableError,
    "InternalServerException": AwsUnavailableError,
    "InternalServiceException": AwsUnavailableError,
    "OperationTimeoutException": AwsUnavailableError,
    "ServiceUnavailable": AwsUnavailableError,
}

ADVICE: dict[type[AwsError], str] = {
    CredentialsError: (
        "Check the credentials this process runs with (environment, profile, role); "
        "`aws sts get-caller-identity` shows who they are."
    ),
    AccessDeniedError: (
        "Add the missing action to the identity's IAM policy; `feast-dynamo docs iam` has the "
        "least-privilege policy of each command."
    ),
    ThrottledError: "Retry later, or raise the table's or account's capacity.",
    AwsUnavailableError: "Check the network, the region and any endpoint_url, then run it again.",
}


S3_ACTIONS = {
    "HeadObject": "GetObject",
    "HeadBucket": "ListBucket",
    "ListObjects": "ListBucket",
    "ListObjectsV2": "ListBucket",
    "CopyObject": "PutObject",
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
    "DeleteObjects": "DeleteObject",
}
"""Operations of S3 whose actions in policies have other names."""

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def local_advice(url: str | None) -> str:
    """What to do where nothing answers at an endpoint of this machine; empty for other hosts."""
    if url is None or urlsplit(url).hostname not in LOOPBACK:
        return ""
    return (
        " If that is the embedded AWS, start it again with `feast-dynamo local up`, in its folder "
        "(`feast-dynamo local status` says whether it runs; what it held is gone)."
    )


@dataclass(frozen=True)
class AwsSettings:
    """How to reach AWS. None means: what botocore resolves from environment and profile.

    `credentials` are botocore's, of `given_credentials`; they stand before all others.
    """

    region: str | None = None
    endpoint_url: str | None = None
    profile: str | None = None
    role_arn: str | None = None
    credentials: Any = None


def session(settings: AwsSettings) -> boto3.Session:
    """Build a session; with `role_arn` its credentials are those of the assumed role.

    Raises:
        ConfigError: the profile does not exist, or no region is set anywhere.
    """
    _quieten_botocore()
    try:
        # botocore reads AWS_DEFAULT_REGION alone; Lambda, ECS and other SDKs have AWS_REGION.
        region = settings.region or os.environ.get("AWS_REGION")
        base = _session(settings.profile, region)
    except boto_errors.ProfileNotFound as error:
        raise ConfigError(
            f"AWS profile `{error.kwargs['profile']}` does not exist. Set `profile` in "
            "feature_store.yaml, or AWS_PROFILE in the environment, to one that `aws configure "
            "list-profiles` shows."
        ) from error
    if base.region_name is None:
        raise ConfigError(
            "No AWS region is set. Set `region` in the store's block of feature_store.yaml, or "
            "AWS_REGION in the environment. For an AWS on this machine: `feast-dynamo local up`, "
            'then `eval "$(feast-dynamo local env)"` in each terminal.'
        )
    if settings.credentials is not None:
        _botocore(base)._credentials = settings.credentials
        return base
    return _assume(base, settings) if settings.role_arn else base


def given_credentials(found: dict[str, Any], renewed: Callable[[], dict[str, Any]]) -> Any:
    """Credentials that another service than AWS's gives out.

    Args:
        found: `access_key`, `secret_key`, `token` and `expiry_time`, ISO or None.
        renewed: gets new ones, before these expire.
    """
    if found["expiry_time"] is None:
        return Credentials(found["access_key"], found["secret_key"], found["token"])
    return RefreshableCredentials.create_from_metadata(
        found, refresh_using=renewed, method="vended"
    )


def _quieten_botocore() -> None:
    # `feast` sets the root logger to INFO, at which botocore reports every session it builds,
    # across the progress bar of `feast materialize`. A level that somebody set is left alone.
    for name in CHATTY_LOGGERS:
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.WARNING)


def _botocore(aws_session: boto3.Session) -> Any:
    return aws_session._session


def botocore_session(settings: AwsSettings) -> Any:
    """The session of botocore beneath `session`, for libraries that take no other.

    Raises: as `session`.
    """
    return _botocore(session(settings))


def _session(profile: str | None, region: str | None) -> boto3.Session:
    made = boto3.Session(profile_name=profile, region_name=region)
    # A loader keeps the service models that it has parsed: with one of its own for each session a
    # client of S3 takes 90 to 330 ms to build, with one for all 18 ms.
    _botocore(made).register_component("data_loader", _loader())
    return made


@functools.cache
def _loader() -> Loader:
    return create_loader(os.environ.get("AWS_DATA_PATH"))


@functools.cache
def service_model(service: str) -> ServiceModel:
    """What AWS's own model says of a service: its operations, and the shapes of their requests.

    Args:
        service: boto3's name of it, for example `sagemaker`.

    Raises:
        ConfigError: there is no such service.
    """
    try:
        return ServiceModel(_loader().load_service_model(service, "service-2"), service)
    except boto_errors.UnknownServiceError as error:
        raise ConfigError(
            f"botocore {botocore.__version__} knows no service `{service}`."
        ) from error


@functools.cache
def dns_suffix(region: str) -> str:
    """What the hosts of AWS in a region end with, for example `amazonaws.com`.

    Raises:
        ConfigError: the region is in no partition that botocore knows.
    """
    for partition in _loader().load_data("partitions")["partitions"]:
        if region in partition["regions"] or re.match(partition["regionRegex"], region):
            found: str = partition["outputs"]["dnsSuffix"]
            return found
    raise ConfigError(f"botocore {botocore.__version__} knows no region `{region}`.")


def is_timestamp(value: Any) -> bool:
    """Whether botocore can send a value as a timestamp."""
    try:
        parse_to_aware_datetime(value)
    except (ValueError, TypeError, OverflowError, RuntimeError):
        return False
    return True


def _assume(base: boto3.Session, settings: AwsSettings) -> boto3.Session:
    with translated("sts", "AssumeRole"):
        source = base.get_credentials()
    if source is None:
        raise no_credentials("sts", "AssumeRole")
    fetcher = AssumeRoleCredentialFetcher(
        client_creator=_botocore(base).create_client,
        source_credentials=source,
        role_arn=settings.role_arn,
        extra_args={"RoleSessionName": "feast-dynamo-ext"},
    )
    # The profile stays for what else it sets: endpoints, retries, the CA bundle.
    assumed = _session(settings.profile, base.region_name)
    _botocore(assumed)._credentials = DeferredRefreshableCredentials(
        method="assume-role", refresh_using=fetcher.fetch_credentials
    )
    return assumed


def client(
    service: str,
    settings: AwsSettings,
    *,
    config: Config | None = None,
    given: boto3.Session | None = None,
) -> Any:
    """Build a boto3 client: from the given session, else from one of the settings.

    Raises:
        ConfigError: the region or the endpoint that is configured cannot be.
        CredentialsError: a profile's `credential_process` failed.
    """
    found = given or session(settings)
    with translated(service, f"profile {found.profile_name}"):
        endpoint_url(service, settings, found)
        made = found.client(service, endpoint_url=settings.endpoint_url, config=config)
    made.meta.events.register("after-call", _refuse_others_answer)
    return made


def _refuse_others_answer(http_response: Any, parsed: Any, model: Any, **_: Any) -> None:
    """Refuse what something else has answered in AWS's place: a login page, for example.

    botocore takes an answer that it cannot parse for an empty one.

    Raises:
        AwsUnavailableError: naming the endpoint, and what answered.
    """
    status = http_response.status_code
    is_good = status < MULTIPLE_CHOICES
    # An answer that a handler of botocore's events has made up has no body.
    is_made_up = http_response.raw is None
    if is_made_up or status in REFUSED or (is_good and model.has_streaming_output):
        return
    body = http_response.content.strip()
    is_other = body[:MOST_OF_TAG].lower().startswith((b"<!doctype html", b"<html"))
    if is_good and model.service_model.protocol == "json" and model.output_shape is not None:
        # Only a description has members in any case: there is no row of a key, say.
        is_empty = body == b"{}" and not model.name.startswith(("Describe", "List"))
        is_other |= not is_empty and not parsed.keys() & model.output_shape.members.keys()
    if is_other:
        url = urlsplit(http_response.url)
        headers = http_response.headers
        raise AwsUnavailableError(
            f"{model.service_model.service_name} {model.name}: {url.scheme}://{url.netloc} "
            f"answered HTTP {status} with something that is not AWS's answer "
            f"(Content-Type: {headers.get('Content-Type', 'none')}, Server: "
            f"{headers.get('Server', 'none')}). Check "
            "`endpoint_url` and any proxy on the way: a login page may be in AWS's place.",
            service=model.service_model.service_name,
            operation=model.name,
        )


def endpoint_url(service: str, settings: AwsSettings, aws_session: boto3.Session) -> str | None:
    """The endpoint that is configured for a service, or None where AWS's own is meant.

    Raises:
        ConfigError: it is no URL.
    """
    if settings.endpoint_url:
        refuse_no_url(settings.endpoint_url, "`endpoint_url`", service)
        return settings.endpoint_url
    core = _botocore(aws_session)
    if core.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    found: str | None = ConfiguredEndpointProvider(
        full_config=core.full_config,
        scoped_config=core.get_scoped_config(),
        client_name=service,
    ).provide()
    if found:
        names = (f"AWS_ENDPOINT_URL_{service.upper()}", "AWS_ENDPOINT_URL")
        of_profile = f"`endpoint_url` of AWS profile `{aws_session.profile_name}`"
        setting = next((one for one in names if os.environ.get(one)), of_profile)
        refuse_no_url(found, setting, service)
    return found


def refuse_no_url(url: str, setting: str, service: str) -> None:
    """Refuse an endpoint that is no URL, which botocore does without a name, or not at all.

    Raises:
        ConfigError: naming the setting.
    """
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of a port that is none
        is_url = False
    if not is_url or re.search(r"\s", url):
        raise ConfigError(
            f"{setting} is `{url}`, which is no URL. Write it with its scheme, and a port if it "
            f"has one: `http://localhost:8000` or `https://{service}.eu-west-1.amazonaws.com`."
        )


def is_on_loopback(url: str | None) -> bool:
    """Whether requests to a URL stay on this machine, as those to a stand-in of AWS do."""
    return urlsplit(url or "").hostname in LOOPBACK


def ca_bundle(aws_session: boto3.Session) -> str:
    """The file of certificates that TLS connections of a session trust."""
    found: str = _botocore(aws_session).get_config_variable("ca_bundle") or get_cert_path(True)
    return found


def proxy_of(url: str) -> str | None:
    """The proxy that the environment sets for a URL, as a URL; None for none."""
    found: str | None = get_environ_proxies(url).get(url.partition(":")[0])
    return found if not found or "://" in found else f"http://{found}"


def normal_path(path: str) -> str:
    """The path of a URL as it is signed."""
    found: str = normalize_url_path(path)
    return found


def filesystem(uri: str, settings: AwsSettings) -> tuple[FileSystem, str]:
    """The pyarrow filesystem for a URI or local path, and the path within it.

    S3 is reached as boto3 reaches it: its endpoint, certificates, proxy, and credentials that are
    renewed while the filesystem is in use.

    Raises:
        CredentialsError: s3:// and no credentials.
        ConfigError: no region, or a scheme that is neither s3 nor a file.
    """
    from pyarrow import fs

    scheme, path = scheme_and_path(uri)
    if scheme in ("", "file"):
        return fs.LocalFileSystem(), path
    if scheme not in ("s3", "s3a", "s3n"):
        raise ConfigError(
            f"`{uri}`: only s3:// URIs and local paths can be read and written, not {scheme}://."
        )
    return fs.PyFileSystem(_s3(uri, settings)), path


def _s3(uri: str, settings: AwsSettings) -> RenewedS3:
    from pyarrow import fs

    from feast_dynamo_ext.s3_filesystem import RenewedS3, S3ThroughBoto

    aws_session = session(settings)
    with translated("s3", uri):
        credentials = aws_session.get_credentials()
    if credentials is None:
        raise no_credentials("s3", uri)
    options: dict[str, Any] = {
        "region": aws_session.region_name,
        "endpoint_override": endpoint_url("s3", settings, aws_session),
        "tls_ca_file_path": ca_bundle(aws_session),
        # A small file is then one PUT, not a multipart upload of three requests.
        "allow_delayed_open": True,
    }

    def build(frozen: ReadOnlyCredentials) -> fs.S3FileSystem:
        return fs.S3FileSystem(
            access_key=frozen.access_key,
            secret_key=frozen.secret_key,
            session_token=frozen.token,
            **options,
        )

    proxy = s3_proxy(settings, aws_session)
    if proxy is not None and proxy.startswith("https://"):
        s3 = client("s3", settings, given=aws_session)
        return S3ThroughBoto(credentials, build, translated, s3)
    if proxy is not None:
        options["proxy_options"] = proxy
    return RenewedS3(credentials, build, translated)


def s3_proxy(settings: AwsSettings, aws_session: boto3.Session) -> str | None:
    """The proxy that the environment sets for S3, as a URL; None for none."""
    if not getproxies():  # a client that is built for its endpoint alone takes 18 ms
        return None
    return proxy_of(client("s3", settings, given=aws_session).meta.endpoint_url)


def scheme_and_path(uri: str) -> tuple[str, str]:
    """The scheme of a URI, empty of a local path, and all that follows it.

    A `?` or a `#` is part of a key or of a file's name: it begins no query and no fragment.
    """
    scheme, is_uri, path = uri.partition("://")
    return (scheme.lower(), path) if is_uri else ("", uri)


def no_credentials(service: str, operation: str) -> CredentialsError:
    """The error that no credentials were found, naming what they were for."""
    return CredentialsError(
        f"{service} {operation}: no AWS credentials were found. "
        "Set them in the environment, a profile, or give this machine a role.",
        service=service,
        operation=operation,
    )


def aws_error(
    code: str, message: str, *, service: str, operation: str, resource: str, request_id: str = ""
) -> AwsError:
    """Our exception for a service's error code, naming operation and resource."""
    kind = ERROR_BY_CODE.get(code, AwsError)
    advice = ADVICE.get(kind, "")
    if kind is AccessDeniedError and service == "s3" and " perform: " not in message:
        # Where AWS names the action itself, it may be one of a key of KMS.
        action = f"s3:{S3_ACTIONS.get(operation, operation)}"
        advice = advice.replace("the missing action", f"the missing action, `{action}`,")
    if code == "NoSuchBucket":
        named = re.search(r"s3://([^/\s]+)", resource)
        make = f": `aws s3 mb s3://{named[1]}`" if named else ""
        advice = f"Correct the URI where it is declared, or make the bucket{make}."
    text = f"{service} {operation} on {resource}: {code}: {message.rstrip('.')}. {advice}".rstrip()
    return kind(text, service=service, operation=operation, code=code, request_id=request_id)


@contextlib.contextmanager
def translated(service: str, resource: str) -> Iterator[None]:
    """Turn botocore's exceptions into ours, naming the resource.

    Raises:
        AwsError: or the subclass that ERROR_BY_CODE names for the code.
        ConfigError: botocore refused a parameter or the region before anything was sent.
    """
    try:
        yield
    except boto_errors.ClientError as error:
        _raise_client_error(error, service, resource)
    except (boto_errors.NoCredentialsError, boto_errors.PartialCredentialsError) as error:
        raise no_credentials(service, resource) from error
    except boto_errors.CredentialRetrievalError as error:
        raise CredentialsError(
            f"{service} on {resource}: {error}. {ADVICE[CredentialsError]}", service=service
        ) from error
    except boto_errors.ParamValidationError as error:
        raise ConfigError(f"{service} on {resource}: {error}") from error
    except boto_errors.InvalidRegionError as error:
        raise ConfigError(
            f"AWS region `{error.kwargs['region_name']}` cannot be the name of one. Set `region` "
            "in feature_store.yaml, or AWS_REGION in the environment, to one such as eu-west-1."
        ) from error
    except boto_errors.BotoCoreError as error:
        advice = ADVICE[AwsUnavailableError] + local_advice(error.kwargs.get("endpoint_url"))
        raise AwsUnavailableError(
            f"{service} on {resource}: {str(error).rstrip('.')}. {advice}", service=service
        ) from error


# pyarrow reports S3's error code inside the text of an OSError.
S3_ERROR = re.compile(r"AWS Error (\w+) during (\w+) operation: (.*)", re.DOTALL)
S3_PLACE = re.compile(r" key '(.*)' in bucket '([^']*)': AWS Error ", re.DOTALL)


@contextlib.contextmanager
def s3_translated(resource: str) -> Iterator[None]:
    """Turn what pyarrow's S3 filesystem raises into our exceptions, naming the resource.

    A resource that is no URI, such as a table or a path, is named by that of the file.

    Raises:
        AwsError: or the subclass for the code.
        OSError: unchanged, where it is not S3's.
    """
    try:
        yield
    except OSError as error:
        found = S3_ERROR.search(str(error))
        if found is None:
            raise
        code, said = found[1].title().replace("_", ""), found[3]
        place = S3_PLACE.search(str(error))
        if place is not None and not resource.lower().startswith(("s3://", "s3a://", "s3n://")):
            path = f"{place[2]}/{place[1]}"
            resource = f"s3://{path}" + (f" ({resource})" if resource != path else "")
        is_down = code == "NetworkConnection"
        if is_down:
            names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
            set_to = next((os.environ[name] for name in names if os.environ.get(name)), None)
            said = said.rstrip(". ") + "." + local_advice(set_to)
        raise aws_error(
            "ServiceUnavailable" if is_down else code,
            said,
            service="s3",
            operation=found[2],
            resource=resource,
        ) from error


def _raise_client_error(error: Any, service: str, resource: str) -> NoReturn:
    details = error.response.get("Error", {})
    raise aws_error(
        str(details.get("Code", "Unknown")),
        str(details.get("Message", "")) or "no message",
        service=service,
        operation=error.operation_name,
        resource=resource,
        request_id=error.response.get("ResponseMetadata", {}).get("RequestId", ""),
    ) from error
