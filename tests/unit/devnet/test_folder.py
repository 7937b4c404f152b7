"""Whose a folder is: a real node's home is never touched, a half-made devnet is made anew."""

from pathlib import Path

import pytest

from node.devnet import people as places
from node.devnet.folder import MARK_FILE, check_ours, clear, held, is_empty
from node.devnet.people import PEOPLE_FILE, settle, settled
from node.home import HomeError, make_home
from node.storage.errors import HomeInUse
from node.storage.lock import LOCK_NAME, lock_home

PORTS = (7001, 7002, 7003, 7004, 7005)


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A devnet's folder."""
    home = tmp_path / "net"
    with held(home):
        settle(home, time_ms=1, ports=PORTS, models=())
    return home


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def test_real_home_is_refused_and_not_a_byte_of_it_changes(known: Path, tmp_path: Path) -> None:
    """`--home ~/.olnode devnet --reset` would have removed its keystore."""
    real = tmp_path / "real"
    make_home(real, genesis=(known / "genesis").read_bytes(), chosen={}, password="long enough")
    before = contents(real)
    with pytest.raises(HomeError, match=r"not empty and not a devnet's") as refusal, held(real):
        pass
    assert "--home" in refusal.value.mend
    with pytest.raises(FileExistsError):
        settle(real, time_ms=1, ports=PORTS, models=())
    assert contents(real) == before


def test_home_inside_a_devnet_is_no_devnet(known: Path) -> None:
    with pytest.raises(HomeError):
        check_ours(known / "n0")


@pytest.mark.parametrize("text", ["", "{}", "[]", '[["ann", "00"]]', "[1]", "\udcff"])
def test_people_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / PEOPLE_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(HomeError, match="no whole devnet"):
        check_ours(tmp_path)


def test_absent_and_empty_folders_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty", "deep/down"):
        folder = tmp_path / name
        assert is_empty(folder)
        with held(folder):
            assert (folder / MARK_FILE).is_file()
        assert is_empty(folder)


def test_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError):
        check_ours(tmp_path / "file")


def test_devnet_without_a_mark_is_known_by_its_people(known: Path) -> None:
    (known / MARK_FILE).unlink()
    check_ours(known)
    assert not is_empty(known)


def test_people_come_last_so_what_was_interrupted_is_not_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def interrupted(home: Path, **parts: object) -> None:
        made.append(home)
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(home, **parts)

    real = places.make_home
    monkeypatch.setattr(places, "make_home", interrupted)
    home = tmp_path / "net"
    with pytest.raises(KeyboardInterrupt), held(home):
        settle(home, time_ms=1, ports=PORTS, models=())
    assert settled(home) is None
    monkeypatch.undo()
    with held(home):
        clear(home)
        settle(home, time_ms=1, ports=PORTS, models=())
    assert settled(home) is not None


def test_one_devnet_at_a_time_holds_a_folder(known: Path) -> None:
    with held(known), pytest.raises(HomeInUse, match="another olnode") as refusal, held(known):
        pass
    assert "Ctrl-C" in refusal.value.mend
    with held(known):
        pass


def test_folder_in_which_a_daemon_still_runs_is_refused(known: Path) -> None:
    """A devnet that was killed may leave its daemons, and a reset would pull the ground away."""
    with lock_home(known / "n2"):
        with pytest.raises(HomeInUse) as refusal, held(known):
            pass
        assert refusal.value.mend == f"olnode --home {known / 'n2'} stop"
    with held(known):
        pass


def test_clear_leaves_the_mark_and_follows_no_link(known: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    (known / "link").symlink_to(outside)
    clear(known)
    assert {entry.name for entry in known.iterdir()} == {MARK_FILE, LOCK_NAME}
    assert (outside / "file").read_text() == "kept"
    check_ours(known)
