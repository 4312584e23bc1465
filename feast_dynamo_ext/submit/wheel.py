"""A wheel of this package, made of the files that are installed here; and what it requires.

A job must run the same code as the machine that submits it, also where that is a checkout or a
package on no index. Equal files give equal bytes.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from dataclasses import dataclass, field
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

OURS = "feast-dynamo-ext"
PACKAGE = "feast_dynamo_ext"
EXTRAS_OF_JOBS = ("iceberg", "delta")
"""What a history may need besides; taken along where it is installed here."""

_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can have
_WHEEL = """\
Wheel-Version: 1.0
Generator: feast-dynamo submit
Root-Is-Purelib: true
Tag: py3-none-any
"""


@dataclass(frozen=True)
class Wheel:
    """A wheel of this package.

    Attributes:
        name: of its file, for example `feast_dynamo_ext-0.1.0-py3-none-any.whl`.
        data: its bytes.
        sha256: of names and contents of what is in it, as compressors differ.
        metadata: text of its METADATA.
    """

    name: str
    data: bytes = field(repr=False)
    sha256: str
    metadata: str = field(repr=False)

    @property
    def version(self) -> str:
        """Of the package."""
        return str(parse_wheel_filename(self.name)[1])


def installed_wheel() -> Wheel:
    """The wheel of the package as it is installed here, a checkout included.

    Raises:
        ConfigError: it is not installed as a package.
    """
    try:
        found = metadata.distribution(OURS)
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"{OURS} is not installed here as a package, so no wheel can be made of it. Install "
            "it, or name one: --wheel FILE."
        ) from error
    info = f"{PACKAGE}-{found.version}.dist-info"
    text = found.read_text("METADATA") or ""
    files = _package_files(found) | {
        f"{info}/METADATA": text.encode(),
        f"{info}/WHEEL": _WHEEL.encode(),
        f"{info}/entry_points.txt": (found.read_text("entry_points.txt") or "").encode(),
    }
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    name = f"{PACKAGE}-{found.version}-py3-none-any.whl"
    return Wheel(name, _zipped(files), _sha256(files), text)


def given_wheel(path: Path) -> Wheel:
    """A wheel of this package that is there as a file.

    Raises:
        ConfigError: it is none, or one of another package.
    """
    try:
        name, _, _, tags = parse_wheel_filename(path.name)
        with zipfile.ZipFile(path) as archive:
            files = {
                each: archive.read(each) for each in archive.namelist() if not each.endswith("/")
            }
        data = path.read_bytes()
    except (InvalidWheelFilename, zipfile.BadZipFile, OSError) as error:
        raise ConfigError(f"{path} is no wheel that can be read: {error}.") from error
    if name != OURS:
        raise ConfigError(f"{path} is a wheel of `{name}`. Name one of `{OURS}`.")
    if not any(tag.platform == "any" for tag in tags):
        raise ConfigError(f"{path} is a wheel of one platform; a job takes one of any.")
    texts = [text for each, text in files.items() if each.endswith(".dist-info/METADATA")]
    if len(texts) != 1:
        raise ConfigError(f"{path} is no wheel: it has {len(texts)} files METADATA.")
    return Wheel(path.name, data, _sha256(files), texts[0].decode())


def requirements(
    wheel: Wheel, extras: Sequence[str] | None = None, python: str | None = None
) -> tuple[str, ...]:
    """What a wheel requires, each in the version that is installed here.

    Left out is what is not installed here, or not in a version for the job's Python, and which the
    wheel itself requires: pip finds a version of that.

    Args:
        wheel: the wheel.
        extras: of the package; by default those of `EXTRAS_OF_JOBS` that are installed here.
        python: of the job, for example `3.11`; None for one that is not known.

    Raises:
        ConfigError: the package has no such extra.
    """
    known = Parser().parsestr(wheel.metadata)
    of_package = {canonicalize_name(name) for name in known.get_all("Provides-Extra") or ()}
    every = [Requirement(text) for text in known.get_all("Requires-Dist") or ()]
    if extras is None:
        extras = [name for name in EXTRAS_OF_JOBS if name in of_package and _has(every, name)]
    wanted = ["", *extras]
    found: list[Requirement] = []
    for name in wanted:
        if name and canonicalize_name(name) not in of_package:
            hint = did_you_mean(name, of_package, "It has")
            raise ConfigError(f"{OURS} {wheel.version} has no extra `{name}`. {hint}")
        for each in _of(every, name):
            if canonicalize_name(each.name) == OURS:  # an extra that is made of others
                wanted += [extra for extra in sorted(each.extras) if extra not in wanted]
            else:
                found.append(each)
    by_name = {canonicalize_name(each.name): each for each in found}
    pinned = (_pinned(by_name[name], python) for name in sorted(by_name))
    return tuple(filter(None, pinned))


def checked_requirement(text: str) -> str:
    """A requirement as pip takes it.

    Raises:
        ConfigError: it is none.
    """
    try:
        return str(Requirement(text))
    except InvalidRequirement as error:
        raise ConfigError(f"`{text}` is no requirement of pip's: {error}") from error


def _of(every: Sequence[Requirement], extra: str) -> Iterator[Requirement]:
    """Requirements of an extra, or those of the package itself."""
    for each in every:
        needs = each.marker is None or each.marker.evaluate({"extra": extra})
        is_own = each.marker is None or each.marker.evaluate({"extra": ""})
        if needs and (extra == "") == is_own:
            yield each


def _has(every: Sequence[Requirement], extra: str) -> bool:
    return all(_installed(each.name) is not None for each in _of(every, extra))


def _pinned(requirement: Requirement, python: str | None) -> str:
    """The version that is installed here; else the range of an extra, and nothing of the wheel."""
    version = _installed(requirement.name)
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    # Versions with a `+` are of no index.
    if version is not None and "+" not in version and _is_for(requirement.name, python):
        return f"{requirement.name}{extras}=={version}"
    is_of_extra = requirement.marker is not None and "extra" in str(requirement.marker)
    return f"{requirement.name}{extras}{requirement.specifier}" if is_of_extra else ""


def _is_for(name: str, python: str | None) -> bool:
    """Whether the version of a package that is installed here is for a Python."""
    needs = metadata.metadata(name).get_all("Requires-Python") or []
    return python is None or all(SpecifierSet(each).contains(f"{python}.0") for each in needs)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package_files(found: metadata.Distribution) -> dict[str, bytes]:
    folder = Path(__file__).parents[1]
    # Of a checkout, what the build puts into the package besides is beside the installed metadata.
    besides = {
        str(path): Path(str(path.locate()))
        for path in found.files or ()
        if path.parts[0] == PACKAGE and "__pycache__" not in path.parts
    }
    own = {
        f"{PACKAGE}/{path.relative_to(folder).as_posix()}": path
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts and path.suffix != ".pyc" and not path.is_symlink()
    }
    every = besides | own
    return {name: every[name].read_bytes() for name in sorted(every) if every[name].is_file()}


def _record(files: Mapping[str, bytes], own_name: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for name in sorted(files):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest())
        writer.writerow([name, f"sha256={digest.decode().rstrip('=')}", len(files[name])])
    writer.writerow([own_name, "", ""])
    return text.getvalue().encode()


def _zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def _sha256(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        content = hashlib.sha256(files[name]).hexdigest()
        digest.update(f"{name}\n{content}\n".encode())
    return digest.hexdigest()
