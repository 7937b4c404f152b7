"""What is installed is what we ship: the lock, the three packages, the two commands.

Why `pip check` has one allowed line: libp2p pins fastecdsa 2.3.2, which has no wheel for our
Pythons; the lock has 4.0.0, used for ECDSA keys only, and ours are Ed25519.
"""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = re.compile(
    r"libp2p \S+ has requirement fastecdsa==2\.3\.2[;,].* you have fastecdsa 4\.0\.0\."
)
OWN_STEP = {"torch"}  # installed before the lock, as whatever build the machine wants
FROM_OUTSIDE = {"pip"}


def locked() -> dict[str, str]:
    """name -> version, as requirements.lock has them."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): pin for name, pin in pins}


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_lock_is_exact_and_holds_no_torch() -> None:
    pins = locked()
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", pin) for pin in pins.values())
    assert not [name for name in pins if name == "torch" or name.startswith(("nvidia", "triton"))]


def test_lock_holds_all_that_we_and_it_need() -> None:
    """Closed under requirements, so that `--no-deps` leaves nothing out."""
    pins = locked()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in project["dependencies"] + extras["ml"] + extras["dev"]]
    for name in pins:
        wanted += [
            need
            for need in map(Requirement, requires(name) or [])
            if need.marker is None or need.marker.evaluate({"extra": ""})
        ]
    missing = {canonicalize_name(need.name) for need in wanted} - pins.keys()
    assert missing - OWN_STEP - FROM_OUTSIDE == set()


def test_what_is_installed_is_what_is_locked() -> None:
    """Mend: `make`."""
    other = {}
    for name, pin in locked().items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "nothing"
        if found != pin:
            other[name] = f"{found}, not {pin}"
    assert other == {}


def test_pip_check_complains_of_one_pin_alone() -> None:
    told = run(sys.executable, "-m", "pip", "check").stdout.splitlines()
    assert [line for line in told if not ALLOWED.match(line) and "No broken" not in line] == []


def test_wheel_holds_three_packages_and_nothing_else(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("consensus", "node", "p2p"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for folder in ("tests", "configs"):  # must not leak in
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    flags = ("--no-deps", "--no-build-isolation", "--no-cache-dir", "--disable-pip-version-check")
    built = run(sys.executable, "-m", "pip", "wheel", "-q", *flags, ".", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"consensus", "node", "p2p"}
    sources = {path.relative_to(ROOT).as_posix() for top in ("consensus", "node", "p2p")
               for path in (ROOT / top).rglob("*.py")}  # fmt: skip
    assert sources <= set(names)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_machine_without_python_is_told_in_one_sentence(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    told = run("make", "-s", "PY=", cwd=tmp_path)
    first, *rest = told.stderr.splitlines()
    assert told.returncode != 0
    assert first.startswith("olnode needs Python 3.11 or 3.12")
    assert all(line.startswith("make") for line in rest)
    assert not (tmp_path / ".venv").exists()


def test_checkers_run_what_people_run() -> None:
    assert "exec make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_no_package_hides_ours_under_tests() -> None:
    """A `tests/consensus/__init__.py` would shadow the real package."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []
