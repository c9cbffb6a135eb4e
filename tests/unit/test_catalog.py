"""Unit: the catalog stores every change of registered modules whole, with its entry in the audit log."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3

import attrs
import pytest

from actors.registry import catalog as module_under_test
from actors.registry.catalog import Catalog
from actors.registry.stored import Action, Adopted, ChangesQuery, Note, StoredModule, StoredVersion
from protocol.errors import ErrorKind, RunnerError

FILES = {"main.py": b"def handler(input): return 1\n", "data/\xe9.bin": bytes(range(256))}


def version(name="v1", module="m", **fields):
    spec = {"name": module, "env": "inline", "path": "."}
    values = {"digest": "d" + name, "entry": "main.py", "package": False, "folder": "m-1", "created_at": 5.0}
    return StoredVersion(**{"module": module, "version": name, "spec": spec, "created_by": "ann", **values, **fields})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "modules.db"


@pytest.fixture
def catalog(path):
    opened = Catalog.open(path)
    yield opened
    opened.close()


def actions(catalog, **query):
    return [(each.action, each.module, each.version) for each in catalog.changes(ChangesQuery(**query))]


def test_what_was_registered_is_there_when_it_is_opened_again(catalog, path):
    first = catalog.register(version(), FILES, "v1", ())
    second = catalog.register(version("v2", created_by="bob"), {}, "v1", ())
    catalog.close()

    again = Catalog.open(path)
    (module,) = again.load()
    assert (module.name, module.active, module.revision, module.updated_by) == ("m", "v1", second, "bob")
    assert module.versions == (version(), version("v2", created_by="bob"))
    assert again.files("m", "v1") == FILES
    assert again.files("m", "v2") == {}
    assert second > first > 0
    again.close()


def test_every_change_is_in_the_database_file_itself(catalog, path, tmp_path):
    """What stands beside it may be lost: a copy without it has all."""

    def copied():
        copy = tmp_path / "copy.db"
        shutil.copy(path, copy)
        opened = Catalog.open(copy)
        try:
            return [(module.name, module.active, len(module.versions)) for module in opened.load()]
        finally:
            opened.close()

    catalog.register(version(), FILES, "v1", ())
    assert copied() == [("m", "v1", 1)]
    catalog.register(version("v2"), FILES, "v1", ())
    catalog.activate("m", "v2", "ann", "v1")
    assert copied() == [("m", "v2", 2)]
    catalog.remove_version("m", "v1", "ann")
    assert copied() == [("m", "v2", 1)]
    assert [each.name for each in path.parent.glob("modules.db*")] == ["modules.db"]


def test_a_catalog_with_a_write_ahead_log_is_read_and_needs_none_any_more(catalog, path):
    catalog.register(version(), FILES, "v1", ())
    catalog.close()
    with contextlib.closing(sqlite3.connect(path)) as link:
        assert link.execute("pragma journal_mode=wal").fetchone() == ("wal",)

    again = Catalog.open(path)
    assert [module.name for module in again.load()] == ["m"]
    assert [each.name for each in path.parent.glob("modules.db*")] == ["modules.db"]
    again.close()


def test_a_revision_is_never_reused(catalog):
    before = catalog.register(version(), FILES, "v1", ())
    catalog.remove("m", "ann", {})
    assert catalog.load() == []
    assert catalog.register(version(), FILES, "v1", ()) > before + 1
    with pytest.raises(KeyError):
        catalog.files("gone", "v1")


def test_a_version_that_could_not_be_read_is_replaced_and_what_was_active_stays(catalog):
    catalog.register(version(), FILES, "v1", ())
    catalog.register(version(), {"main.py": b"2"}, None, ())
    catalog.register(version("v2"), FILES, None, ())
    catalog.remove_version("m", "v2", "bob")

    (module,) = catalog.load()
    assert (module.active, [each.version for each in module.versions]) == ("v1", ["v1"])
    assert catalog.files("m", "v1") == {"main.py": b"2"}


def test_versions_that_are_pruned_or_deleted_take_their_code_along(catalog):
    for name in ("v1", "v2", "v3"):
        catalog.register(version(name), FILES, name, ("v1",) if name == "v3" else ())
    catalog.remove_version("m", "v2", "bob")

    (module,) = catalog.load()
    assert [each.version for each in module.versions] == ["v3"]
    for name in ("v1", "v2"):
        with pytest.raises(KeyError):
            catalog.files("m", name)
    assert actions(catalog)[:3] == [
        (Action.DELETE_VERSION, "m", "v2"),
        (Action.PRUNE, "m", "v1"),
        (Action.REGISTER, "m", "v3"),
    ]


def test_a_change_that_fails_halfway_changes_nothing(catalog):
    catalog.register(version(), FILES, "v1", ())
    before = catalog.load(), actions(catalog)
    with pytest.raises(TypeError):  # after a part of it was written
        catalog.register(version("v2"), {"main.py": object()}, "v2", ("v1",))
    assert (catalog.load(), actions(catalog)) == before


def test_the_audit_log_is_listed_newest_first_by_every_filter(catalog):
    catalog.register(version(module="a"), {}, "v1", ())
    catalog.register(version(module="b", created_by="bob"), {}, None, ())
    catalog.activate("b", "v1", "bob", None)
    catalog.note("file", [Note(Action.FILE_ADD, "c", "x", {"why": ["it is new"]})])

    newest = catalog.changes(ChangesQuery())
    assert [each.id for each in newest] == sorted((each.id for each in newest), reverse=True)
    assert newest[0].detail == {"why": ["it is new"]}
    assert actions(catalog, module="b") == [(Action.ACTIVATE, "b", "v1"), (Action.REGISTER, "b", "v1")]
    assert actions(catalog, subject="bob", action=Action.ACTIVATE) == [(Action.ACTIVATE, "b", "v1")]
    assert actions(catalog, modules=("a", "c*")) == [(Action.FILE_ADD, "c", "x"), (Action.REGISTER, "a", "v1")]
    assert actions(catalog, before=newest[1].id, limit=1) == [(Action.REGISTER, "b", "v1")]
    assert actions(catalog, until=newest[-1].at) == []
    assert len(actions(catalog, since=newest[-1].at)) == 4


def test_the_audit_log_does_not_grow_without_a_bound(catalog, monkeypatch):
    monkeypatch.setattr(module_under_test, "MAX_CHANGES", 10)
    monkeypatch.setattr(module_under_test, "_SLACK", 5)
    catalog.note("file", [Note(Action.FILE_CHANGE, "m")] * 100)
    assert len(catalog.changes(ChangesQuery(limit=1000))) == 10


def test_a_catalog_of_a_later_runner_is_left_alone(catalog, path):
    catalog.close()
    with sqlite3.connect(path) as link:
        link.execute("update meta set value = 99 where name = 'schema'")
    link.close()
    with pytest.raises(RunnerError) as caught:
        Catalog.open(path)
    assert caught.value.failure.kind is ErrorKind.UNAVAILABLE
    assert f"{path} has schema 99, and this runner reads schema 1 only" in caught.value.failure.message


def test_a_folder_in_the_place_of_the_file_is_reported_with_its_path(path):
    path.mkdir()
    with pytest.raises(RunnerError) as caught:
        Catalog.open(path)
    assert str(path) in caught.value.failure.message
    assert attrs.asdict(caught.value.failure)["field"] == "data_dir"


# Damage


def filled(path, count=60):
    """Make a catalog with so many modules of some size, and close it."""
    catalog = Catalog.open(path)
    for number in range(count):
        code = random.Random(number).randbytes(5000)
        catalog.register(version("1", f"m{number:03}"), {"main.py": code}, "1", ())
    catalog.close()


def test_a_file_that_is_no_database_is_set_aside(path):
    data = b"no database at all, but long enough to be looked at" * 100
    path.write_bytes(data)
    catalog = Catalog.open(path)
    assert catalog.load() == []
    assert catalog.damaged
    catalog.close()
    (kept,) = path.parent.glob("modules.db.damaged-*")
    assert kept.read_bytes() == data
    again = Catalog.open(path)
    assert not again.damaged
    again.close()


def test_of_a_damaged_file_everything_readable_is_kept(path):
    filled(path)
    data = bytearray(path.read_bytes())
    # Whole pages in the middle, as a broken disk would leave them.
    start = len(data) // 2 // 4096 * 4096
    data[start : start + 8 * 4096] = bytes(8 * 4096)
    path.write_bytes(data)
    catalog = Catalog.open(path)
    assert catalog.damaged
    found = catalog.load()
    readable = 0
    for module in found:
        with contextlib.suppress(KeyError):
            readable += catalog.files(module.name, "1")["main.py"] == random.Random(int(module.name[1:])).randbytes(
                5000
            )
    assert readable >= 45
    assert catalog.register(version("1", "after"), {"main.py": b""}, "1", ()) > 0
    catalog.close()


def test_damage_that_appears_at_use_is_mended_too(path):
    filled(path)
    catalog = Catalog.open(path)
    assert not catalog.damaged
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(path.stat().st_size - 8192))
    assert isinstance(catalog.load(), list)
    assert catalog.damaged
    assert catalog.register(version("1", "after"), {"main.py": b"1"}, "1", ()) > 0
    assert "after" in [module.name for module in catalog.load()]
    catalog.close()


@pytest.mark.parametrize(
    ("sql", "lost"),
    [
        ("update versions set spec = x'00ff' where module = 'm001'", "m001"),
        ("update code set files = x'00ff' where module = 'm001'", None),
        ("update changes set detail = x'00ff', action = 'nothing' where module = 'm001'", None),
    ],
)
def test_a_row_that_cannot_be_read_costs_only_itself(path, sql, lost):
    filled(path, 3)
    with contextlib.closing(sqlite3.connect(path)) as link, link:
        link.execute(sql)
    catalog = Catalog.open(path)
    assert [module.name for module in catalog.load() if not module.versions] == ([lost] if lost else [])
    for name in ("m000", "m002"):
        assert catalog.files(name, "1")
    with contextlib.suppress(KeyError):
        catalog.files("m001", "1")
    assert len(catalog.changes(ChangesQuery())) >= 2
    assert catalog.damaged
    catalog.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_registered_in_a_file_that_is_gone(path, replaced):
    catalog = Catalog.open(path)
    path.unlink()
    if replaced:
        path.touch()
    with pytest.raises(OSError, match="deleted or replaced"):
        catalog.register(version("1", "lost"), {"main.py": b""}, "1", ())
    catalog.close()


# -- the changes of a cluster ------------------------------------------------------------------------------------------


def adopted(number, *versions, active=None, code=None, notes=(), name="m"):
    module = StoredModule(name, active, number, 7.0, "ann", versions) if versions else None
    return Adopted(number, "ann", 7.0, notes, name, module, code or {})


def test_a_change_of_a_cluster_may_be_applied_twice(catalog):
    note = Note(Action.REGISTER, "m", "v1", {"node": "a"})
    changes = [adopted(4, version(), active="v1", code={"v1": FILES}, notes=(note, note))]
    for _ in range(2):
        catalog.adopt(99, 5, changes)

    assert catalog.module("m") == StoredModule("m", "v1", 4, 7.0, "ann", (version(),))
    assert catalog.files("m", "v1") == FILES
    assert [each.id for each in catalog.changes(ChangesQuery())] == [(4 << 20) + 1, 4 << 20]
    assert catalog.place() == (99, 5)


def test_a_module_of_a_cluster_replaces_the_versions_that_it_does_not_have(catalog):
    catalog.register(version("old"), FILES, "old", ())
    catalog.register(version("v1", digest="another"), FILES, "v1", ())
    code = {"v1": {"main.py": b"1"}, "v2": {"main.py": b"2"}}
    catalog.adopt(99, 4, [adopted(4, version("v2"), version("v1"), active="v2", code=code)])

    found = catalog.module("m")
    assert [each.version for each in found.versions] == ["v2", "v1"]
    assert catalog.files("m", "v1") == {"main.py": b"1"}
    catalog.adopt(99, 6, [adopted(6)])
    assert catalog.load() == []


def test_a_version_without_code_is_left_out(catalog):
    catalog.adopt(99, 4, [adopted(4, version(), version("v2"), active="v1", code={"v1": FILES})])

    assert [each.version for each in catalog.module("m").versions] == ["v1"]


@pytest.mark.parametrize(
    "change",
    [
        lambda catalog: catalog.register(version("v2"), {}, None, ()),
        lambda catalog: catalog.activate("m", "v1", "ann", None),
        lambda catalog: catalog.remove_version("m", "v1", "ann"),
        lambda catalog: catalog.remove("m", "ann", {}),
    ],
)
def test_a_change_apart_from_the_cluster_ends_the_place_in_it(catalog, change):
    notes = (Note(Action.REGISTER, "m", "v1"),)
    catalog.adopt(99, 4, [adopted(4, version(), active="v1", code={"v1": FILES}, notes=notes)])
    change(catalog)

    assert catalog.place()[0] == 0
    assert catalog.changes(ChangesQuery(limit=1))[0].id > 4 << 20
