"""The checkout, an editable install, a wheel and a source archive hold the same modules under the same names."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

FOLDERS = ("api", "checkpoint", "operator", "runtime", "quantjob", "cli")


def build(source: Path, kind: str, target: Path) -> Path:
    """What `pip` and `build` ask of the backend: `kind` is wheel, sdist or editable."""
    code = f"import sys; from hatchling import build; print(build.build_{kind}(sys.argv[1]))"
    target.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], cwd=source, capture_output=True, text=True, check=True
    )
    return target / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(repository, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked_sdist(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    archive = build(repository, "sdist", folder)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def in_checkout(repository: Path) -> set[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *FOLDERS]
    listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.split("\0")
    ours = {f"plimsoll/{name}" for name in listed if name and (repository / name).exists()}
    return ours | {"plimsoll/__init__.py"}


def in_wheel(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [name for name in archive.namelist() if ".dist-info/" not in name]


def where(code: str, cwd: Path, *path: Path, site: Path | None = None) -> str:
    """Runs `code` with these folders on the path and no installed Plimsoll but the one in `site`."""
    libraries = [entry for entry in sys.path if entry.endswith("-packages")]
    setup = f"import sys; sys.path += {libraries!r}\n"
    if site:
        setup += f"import site; site.addsitedir({str(site)!r})\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "-S", "-c", setup + code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


IMPORT_ALL = """
import plimsoll, plimsoll.api.errors, plimsoll.checkpoint, plimsoll.runtime, plimsoll.cli.main, operator
print(plimsoll.__file__, plimsoll.api.errors.__file__, operator.itemgetter.__name__, sep="|")
"""


def test_the_wheel_holds_every_file_of_the_checkout_once(repository: Path, wheel: Path) -> None:
    names = in_wheel(wheel)
    assert len(names) == len(set(names))
    assert set(names) == in_checkout(repository)


def test_the_source_archive_builds_the_same_wheel(unpacked_sdist: Path, wheel: Path, tmp_path: Path) -> None:
    again = build(unpacked_sdist, "wheel", tmp_path)
    assert sorted(in_wheel(again)) == sorted(in_wheel(wheel))
    with zipfile.ZipFile(again) as new, zipfile.ZipFile(wheel) as old:
        assert all(new.read(name) == old.read(name) for name in in_wheel(wheel))


def test_the_source_archive_holds_real_files_only(unpacked_sdist: Path) -> None:
    assert not [path for path in unpacked_sdist.rglob("*") if path.is_symlink()]
    assert {"LICENSE", "README.md", "pyproject.toml", "constraints.txt"} <= {p.name for p in unpacked_sdist.iterdir()}


def test_the_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    package, module, name = where(IMPORT_ALL, tmp_path.parent, tmp_path).split("|")
    assert Path(package) == tmp_path / "plimsoll" / "__init__.py"
    assert Path(module) == tmp_path / "plimsoll" / "api" / "errors.py"
    assert name == "itemgetter"


def test_an_editable_install_imports_the_checkout(repository: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build(repository, "editable", tmp_path / "dist")) as archive:
        archive.extractall(tmp_path / "site")
    package, module, _ = where(IMPORT_ALL, tmp_path, site=tmp_path / "site").split("|")
    assert Path(package) == repository / "plimsoll" / "__init__.py"
    assert Path(module).samefile(repository / "api" / "errors.py")


def test_the_version_is_the_same_everywhere(repository: Path, wheel: Path) -> None:
    import plimsoll

    assert wheel.name.startswith(f"plimsoll-{plimsoll.__version__}-")
