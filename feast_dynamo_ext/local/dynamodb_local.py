"""Amazon's DynamoDB Local: find it, install it, start it."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from feast_dynamo_ext.errors import ConfigError, DependencyError, LocalError
from feast_dynamo_ext.local.process import Server, launch

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "dynamodb-local"
FOLDER_VARIABLE = "FEAST_DYNAMO_DYNAMODB_LOCAL"
JAR = "DynamoDBLocal.jar"
LIBRARIES = "DynamoDBLocal_lib"

# The one package on a registry that carries DynamoDB Local: 1.25.1, 56 MB.
NPM_PACKAGE = "amplify-dynamodb-simulator@2.9.30"
NPM_SHA512 = (
    "xTeeRLvzEfqyd5lh3bH4c0kHvSHHmmhD5ZDsHFKAQ5g2Zl6JqlFdutaQhCLHzxEp6Ry1o7TB6niIoXuQAnSewQ=="
)
"""Of its archive, in base64, as npm writes it: npm itself checks what the registry says alone."""
NPM_TIMEOUT_S = 900.0
IN_PACKAGE = ("package", "emulator")

STARTER = Path(__file__).with_name("dynamodb_local.xml")


def dynamodb_local_folder() -> Path | None:
    """The folder with `DynamoDBLocal.jar`, or None if it is not installed.

    That is the folder of the variable FEAST_DYNAMO_DYNAMODB_LOCAL if it is set, else the one
    that `install_dynamodb_local` fills.

    Raises:
        ConfigError: FEAST_DYNAMO_DYNAMODB_LOCAL names a folder without it.
    """
    chosen = os.environ.get(FOLDER_VARIABLE)
    if not chosen:
        return _own_folder() if _is_complete(_own_folder()) else None
    folder = Path(chosen).resolve()
    if not _is_complete(folder):
        raise ConfigError(
            f"{FOLDER_VARIABLE} is `{chosen}`, a folder without {JAR} and {LIBRARIES}. "
            "Set it to the folder that holds both, or unset it."
        )
    return folder


def _own_folder() -> Path:
    return Path(sys.prefix) / "share" / "feast-dynamo" / "dynamodb-local"


def _is_complete(folder: Path) -> bool:
    return (folder / JAR).is_file() and (folder / LIBRARIES).is_dir()


def install_dynamodb_local(sha512: str = NPM_SHA512) -> Path:
    """Fetch DynamoDB Local with npm into this Python environment; if it is there, do nothing.

    Args:
        sha512: of the package's archive, in base64.

    Returns:
        The folder with `DynamoDBLocal.jar`.

    Raises:
        DependencyError: there is no java or no npm, or npm cannot fetch the package.
        ConfigError: FEAST_DYNAMO_DYNAMODB_LOCAL names a folder without it.
        LocalError: the environment's folder cannot be written, or the package is not the one that
            is meant. Nothing of it was unpacked then.
    """
    _find("java", "DynamoDB Local runs on it: install Java 11 or newer")
    found = dynamodb_local_folder()
    if found:
        return found
    npm = _find("npm", "DynamoDB Local is fetched with it: install Node.js")
    target = _own_folder()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
            archive = _fetch(npm, Path(scratch))
            _check(archive, sha512)
            _place(_unpack(archive, Path(scratch) / "unpacked"), target)
    except OSError as error:
        raise LocalError(
            f"DynamoDB Local cannot be written to {target}: {error.strerror}. Use a virtual "
            "environment that you may write to, with 130 MB free; or set "
            f"{FOLDER_VARIABLE} to a folder that holds {JAR}."
        ) from error
    return target


def _find(program: str, reason: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise DependencyError(f"`{program}` is not on PATH. {reason}, and run this again.")
    return found


def _fetch(npm: str, scratch: Path) -> Path:
    command = [npm, "pack", NPM_PACKAGE, "--pack-destination", str(scratch)]
    try:
        subprocess.run(  # noqa: S603 - a fixed command
            command,
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=NPM_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        reason = " | ".join(error.stderr.strip().splitlines()[-5:]) or f"code {error.returncode}"
        raise DependencyError(
            f"npm could not fetch {NPM_PACKAGE}: {reason}. "
            "Check that npm reaches its registry, and run this again."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DependencyError(
            f"npm did not fetch {NPM_PACKAGE} (56 MB) within {NPM_TIMEOUT_S:g} s. "
            "Check that npm reaches its registry, and run this again."
        ) from error
    tarballs = list(scratch.glob("*.tgz"))
    if len(tarballs) != 1:
        raise LocalError(f"`npm pack {NPM_PACKAGE}` left {len(tarballs)} archives, not one.")
    return tarballs[0]


def _check(archive: Path, sha512: str) -> None:
    digest = hashlib.sha512(archive.read_bytes()).digest()
    found = base64.b64encode(digest).decode()
    if found != sha512:
        raise LocalError(
            f"{NPM_PACKAGE}: its archive is not the one that is meant: SHA-512 {found}, not "
            f"{sha512}. Nothing was installed. Check which registry npm uses (`npm config get "
            "registry`)."
        )


def _unpack(archive: Path, target: Path) -> Path:
    try:
        with tarfile.open(archive) as tar:
            for member, path in _emulator_files(tar):
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                if content is not None:
                    with content, (target / path).open("wb") as out:
                        shutil.copyfileobj(content, out)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise LocalError(f"{NPM_PACKAGE}: its archive cannot be read: {error}.") from error
    if not _is_complete(target):
        raise LocalError(f"{NPM_PACKAGE} has no {JAR} with {LIBRARIES} in package/emulator.")
    return target


def _emulator_files(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, Path]]:
    # Written by hand: tarfile's own filter="data" is missing in early releases of Python 3.10.
    for member in tar:
        parts = PurePosixPath(member.name).parts
        if parts[:2] != IN_PACKAGE or member.isdir():
            continue
        if ".." in parts or not member.isfile():
            raise LocalError(
                f"{NPM_PACKAGE}: its archive holds `{member.name}`, which is not a plain file "
                "inside its folder. Nothing was installed."
            )
        yield member, Path(*parts[2:])


def _place(unpacked: Path, target: Path) -> None:
    if target.exists() and not _is_complete(target):
        shutil.rmtree(target)
    try:
        unpacked.rename(target)
    except OSError:
        if not _is_complete(target):  # else another process was first with the same
            raise


def can_run() -> bool:
    """Whether DynamoDB Local is installed, and Java to run it.

    Raises:
        ConfigError: FEAST_DYNAMO_DYNAMODB_LOCAL names a folder without it.
    """
    return dynamodb_local_folder() is not None and shutil.which("java") is not None


def can_be_installed() -> bool:
    """Whether what `install_dynamodb_local` needs is on PATH."""
    return all(shutil.which(program) is not None for program in ("java", "npm"))


def start_dynamodb_local(log_folder: Path, *, port: int = 0) -> Server:
    """Start DynamoDB Local on 127.0.0.1, in memory, and wait until it listens (some seconds).

    All credentials and regions see the same tables, and it sends no telemetry.

    Args:
        log_folder: folder for `dynamodb-local.log`; it is created if needed.
        port: where to listen; 0: on a free port.

    Raises:
        DependencyError: it is not installed, or there is no java.
        ConfigError: FEAST_DYNAMO_DYNAMODB_LOCAL names a folder without it.
        LocalError: it does not start; the message has the end of its log.
    """
    folder = dynamodb_local_folder()
    if folder is None:
        raise DependencyError(
            "DynamoDB Local is not installed in this Python environment. "
            "Run: feast-dynamo local install"
        )
    command = [
        _find("java", "DynamoDB Local runs on it: install Java 11 or newer"),
        "-Dorg.eclipse.jetty.util.log.announce=false",
        "-Dorg.eclipse.jetty.LEVEL=WARN",
        f"-Dfeast.dynamo.port={port}",
        f"-Djava.library.path={folder / LIBRARIES}",
        "-cp",
        str(folder / JAR),
        "org.eclipse.jetty.xml.XmlConfiguration",
        str(STARTER),
    ]
    # The option in the starter file comes too late for the event of building the server.
    silent = {"DDB_LOCAL_TELEMETRY": "0"}
    return launch(NAME, command, log_folder / f"{NAME}.log", environment=silent)
