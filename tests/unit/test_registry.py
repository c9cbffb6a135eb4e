"""Unit: published code is stored by its content, whole or not at all, and read from an immutable snapshot."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from actors.registry import code_store as module_under_test
from actors.registry.code_store import Layout
from actors.registry.published import may_run_in_process
from actors.registry.publisher import Publisher, stored
from actors.registry.registry import Registry
from actors.registry.snapshot import Changes, RegistrySnapshot
from config.load import secret_values
from config.modules.spec import ModuleSpec
from config.secrets import Secret
from config.secrets import read as read_secrets
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Isolation, Kind
from runner.api import module_fields

CODE = "def handler(input):\n    return input\n"


def spec(name="greet", **fields):
    """Return a module; `secrets` are names."""
    if "secrets" in fields:
        fields["secrets"] = read_secrets(fields["secrets"])
    if not {"path", "image"} & fields.keys():
        fields.setdefault("code", CODE)
    return ModuleSpec(**{"name": name, "env": Kind.INLINE, **fields})


async def running(nursery, registry):
    await nursery.start(registry.run)
    return registry


@pytest.fixture
async def registry(tmp_path, nursery):
    made = Registry(Publisher(tmp_path / "code", lambda names: {name: f"secret of {name}" for name in names}))
    return await running(nursery, made)


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a folder of a module."""

    def write(files, name="jobs"):
        root = tmp_path / "sources" / name
        for relative, text in files.items():
            path = root / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    return write


async def refused(registry, *specs):
    """Publish what must be refused; return the failure. The snapshot stays the same object."""
    before = registry.snapshot
    with pytest.raises(RunnerError) as caught:
        await registry.publish(specs)
    assert registry.snapshot is before
    return caught.value.failure


def kept_code(registry):
    return (
        sorted(path.name for path in registry.publisher.code_dir.iterdir())
        if registry.publisher.code_dir.is_dir()
        else []
    )


def tree(root: Path):
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


# -- publishing ------------------------------------------------------------------------------------------------------


async def test_code_is_published_as_one_file(registry):
    snapshot = await registry.publish([spec(variables={"A": "1"}, secrets=("TOKEN",), handler="main")])

    module = snapshot.get("greet")
    assert registry.snapshot is snapshot
    assert module.entry == module.root / "main.py"
    assert module.entry.read_text() == CODE
    assert module.root.is_absolute()
    assert (module.function, module.package, module.trusted) == ("main", False, True)
    assert "secret of TOKEN" not in repr(module)
    assert str(module.ref) == f"greet@{module.content_digest[:12]}"


async def test_a_version_that_was_given_is_the_version(registry):
    await registry.publish([spec(version="2024-06")])

    assert registry.snapshot.get("greet").ref.version == "2024-06"


async def test_unchanged_modules_keep_their_identity(registry):
    """Workers are reused as long as the identity is equal."""
    first = (await registry.publish([spec("a"), spec("b")])).modules
    second = (await registry.publish([spec("a"), spec("b", timeout=5.0), spec("c")])).modules

    assert second["a"] is first["a"]
    assert second["b"].digest != first["b"].digest
    assert list(second) == ["a", "b", "c"]


async def test_changes_from_one_snapshot_to_the_next(registry):
    first = await registry.publish([spec("a"), spec("b"), spec("c")])
    second = await registry.publish([spec("b", timeout=5.0), spec("c"), spec("d")])

    assert second.since(first) == Changes(added=("d",), changed=("b",), removed=("a",))
    assert not second.since(second)


async def test_an_older_snapshot_does_not_change(registry):
    held = await registry.publish([spec("a")])
    await registry.publish([])

    assert list(held.modules) == ["a"]
    assert held.get("a").entry.read_text() == CODE
    assert registry.snapshot.modules == {}


CHANGES = {
    "code": {"code": CODE + "\n"},
    "handler": {"handler": "other"},
    "timeout": {"timeout": 1.5},
    "isolation": {"isolation": Isolation.FORK},
    "env": {"env": Kind.VENV},
    "tags": {"tags": ("x",)},
    "variables": {"variables": {"A": "1"}},
    "secrets": {"secrets": ("TOKEN",)},
    "schema": {"input_schema": {"type": "object"}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_everything_that_the_author_wrote_makes_the_digest(registry, change):
    before = (await registry.publish([spec()])).get("greet")
    again = (await registry.publish([spec()])).get("greet")
    after = (await registry.publish([spec(**change)])).get("greet")

    assert again is before
    assert after.digest != before.digest
    assert after.ref.version != before.ref.version


async def test_another_value_of_a_secret_makes_another_identity_and_shows_nothing(registry):
    before = (await registry.publish([spec(secrets=("TOKEN",))])).get("greet")
    registry.publisher.secrets = lambda names: dict.fromkeys(names, "rotated")
    after = (await registry.publish([spec(secrets=("TOKEN",))])).get("greet")

    assert before.digest != after.digest, "workers of the old value would be used"
    assert before.content_digest == after.content_digest
    assert before.ref == after.ref
    assert module_fields(before)["digest"] == module_fields(after)["digest"] == after.content_digest
    assert after.root == before.root, "the code is the same"


async def test_another_place_of_a_secret_makes_another_identity_of_the_same_version(registry, tmp_path):
    """The place of a secret belongs to the identity of a worker, not to its code."""
    registry.publisher.secrets = lambda names: dict.fromkeys(names, "the same value")
    named = (await registry.publish([spec(secrets=("TOKEN",))])).get("greet")
    same = (await registry.publish([spec(secrets={"TOKEN": {"env": "OPERATO_SECRET_TOKEN"}})])).get("greet")
    other = (await registry.publish([spec(secrets={"TOKEN": {"env": "ELSEWHERE"}})])).get("greet")
    file = (await registry.publish([spec(secrets={"TOKEN": {"file": str(tmp_path / "token")}})])).get("greet")

    assert same is named
    assert len({named.digest, other.digest, file.digest}) == 3
    assert {module.ref for module in (named, other, file)} == {named.ref}
    assert file.spec.secrets == {"TOKEN": Secret(file=tmp_path / "token")}


async def test_an_identity_cannot_be_computed_from_the_module_and_a_guessed_secret(tmp_path, nursery):
    made = [Registry(Publisher(tmp_path / "code", lambda names: dict.fromkeys(names, "1234"))) for _ in range(2)]
    same = [await running(nursery, registry) for registry in made]
    one, two = [(await registry.publish([spec(secrets=("TOKEN",))])).get("greet") for registry in same]

    assert one.digest != two.digest
    assert one.content_digest == two.content_digest


async def test_without_secrets_the_identity_is_the_content(registry):
    module = (await registry.publish([spec()])).get("greet")

    assert module.digest == module.content_digest


async def test_the_digest_does_not_depend_on_where_the_code_was(registry, folder):
    one, two = (folder({"main.py": CODE, "lib/x.py": "X = 1"}, name) for name in ("one", "two"))
    first = (await registry.publish([spec(path=one)])).get("greet")
    second = (await registry.publish([spec(path=two)])).get("greet")

    assert second is first


async def test_files_cannot_be_told_apart_by_their_bounds_only(registry, folder):
    one, two = folder({"main.py": CODE, "ab": "c"}, "one"), folder({"main.py": CODE, "a": "bc"}, "two")
    digests = {(await registry.publish([spec(path=path)])).get("greet").digest for path in (one, two)}

    assert len(digests) == 2


async def test_the_code_is_a_copy(registry, folder):
    """Later edits run after the next publish, not before."""
    source = folder({"main.py": CODE, "data/words.txt": "a b"})
    module = (await registry.publish([spec(path=source)])).get("greet")
    (source / "main.py").write_text("broken(")

    assert tree(module.root) == {"main.py": CODE, "data/words.txt": "a b"}
    changed = (await registry.publish([spec(path=source)])).get("greet")
    assert changed.root != module.root
    assert tree(module.root)["main.py"] == CODE


async def test_equal_code_is_kept_once_and_left_alone(registry):
    first = (await registry.publish([spec(timeout=1.0)])).get("greet")
    marker = first.root / "__pycache__"
    marker.mkdir()
    second = (await registry.publish([spec(timeout=2.0)])).get("greet")

    assert second.root == first.root
    assert marker.is_dir()
    assert kept_code(registry) == [first.root.name]


async def test_code_that_was_removed_is_written_again(registry):
    module = (await registry.publish([spec()])).get("greet")
    shutil.rmtree(module.root)
    again = (await registry.publish([spec()])).get("greet")

    assert again.entry.read_text() == CODE


def emptied(path):
    path.write_bytes(b"")


def altered(path):
    """Change a file, and give it the time and the size that it had."""
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"input", b"1 if 0", 1)[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGES = {
    "empty": emptied,
    "altered": lambda path: path.write_text(CODE.replace("input\n", "666\n")),
    "altered, its size and time as before": lambda path: (
        path.rename(f"{path}.old"),
        shutil.copy2(f"{path}.old", path),
        altered(path),
    ),
    "gone": Path.unlink,
    "gone with its folder": lambda path: shutil.rmtree(path.parent),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_damaged_code_is_written_again_before_it_is_used(registry, damage):
    module = (await registry.publish([spec()])).get("greet")
    await registry.verify(module)
    damage(module.entry)

    await registry.verify(module)
    assert module.entry.read_text() == CODE
    assert tree(module.root) == {module.entry.name: CODE}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_damaged_code_is_written_again_by_the_next_runner(tmp_path, nursery, registry, damage):
    module = (await registry.publish([spec()])).get("greet")
    damage(module.entry)

    again = await running(nursery, Registry(Publisher(tmp_path / "code", secret_values)))
    assert (await again.publish([spec()])).get("greet").entry.read_text() == CODE
    assert tree(module.root) == {module.entry.name: CODE}


SOURCES = {
    "a folder": {"main.py": CODE, "lib/a.py": "A = 1"},
    "a folder with one file": {"main.py": CODE},
    "a package": {"__init__.py": "", "main.py": CODE, "lib.py": "A = 1"},
    "a file": {"greet.py": CODE},
}


@pytest.mark.parametrize("files", SOURCES.values(), ids=SOURCES)
async def test_damaged_code_is_written_again_in_its_layout(registry, folder, files):
    source = folder(files)
    source = source / "greet.py" if "greet.py" in files else source
    module = (await registry.publish([spec(path=source)])).get("greet")
    before = tree(module.root)
    module.entry.unlink()

    await registry.verify(module)
    assert tree(module.root) == before
    shutil.rmtree(module.root)
    again = (await registry.publish([spec(path=source)])).get("greet")
    assert (again.digest, again.entry, tree(again.root)) == (module.digest, module.entry, before)


@pytest.mark.parametrize(("package", "names"), [(False, ("email.py",)), (True, ("__init__.py", "lib.py"))])
def test_versions_that_earlier_runners_stored_are_mended(tmp_path, folder, package, names):
    """Their folders have the names of the author; those of this runner have names of their own, by content as all."""
    publisher = Publisher(tmp_path / "code", secret_values)
    given = {"path": folder(dict.fromkeys(names, CODE))} if package else {"code": CODE}
    made, files = publisher.stage(spec("email", handler="__init__:handler" if package else "handler", **given), "ann")
    earlier = attrs.evolve(
        stored(made), entry=names[0], package=package, folder=module_under_test.folder_of("email", files)
    )
    module_under_test.keep(tmp_path / "code" / earlier.folder, files)

    following = Publisher(tmp_path / "code", secret_values)
    module = following.restore(earlier, lambda: files)
    assert (module.root, module.entry, module.package) == (made.root, made.entry, made.package)
    assert following.intact(module)
    before = tree(module.root)
    emptied(module.entry)
    assert not following.intact(module)
    following.mend(module, lambda: files)
    assert tree(module.root) == before
    emptied(module.entry)
    assert Publisher(tmp_path / "code", secret_values).restore(earlier, lambda: files).entry.read_text() == CODE


async def test_damaged_code_whose_source_has_changed_is_named(registry, folder):
    source = folder({"main.py": CODE})
    module = (await registry.publish([spec(path=source)])).get("greet")
    emptied(module.entry)
    (source / "main.py").write_text("def handler(input): return 2")

    with pytest.raises(RunnerError) as caught:
        await registry.verify(module)
    assert caught.value.failure.kind is ErrorKind.UNAVAILABLE
    assert "is damaged" in caught.value.failure.message
    assert registry.damaged == {str(module.ref)}
    (source / "main.py").write_text(CODE)
    await registry.verify(module)
    assert registry.damaged == set()


async def test_code_that_only_looks_changed_is_left_alone(registry):
    module = (await registry.publish([spec()])).get("greet")
    os.utime(module.entry)
    before = module.entry.stat().st_ino

    await registry.verify(module)
    assert module.entry.stat().st_ino == before


async def test_caches_and_repositories_are_left_out(registry, folder):
    files = {
        "main.py": CODE,
        "a/__pycache__/x.pyc": "",
        ".git/config": "",
        ".venv/bin/python": "",
        ".env.example": "A=",
        ".main.py.swp": "",
        "a/main.py~": "",
        "a/.#main.py": "",
    }
    module = (await registry.publish([spec(path=folder(files))])).get("greet")

    assert tree(module.root) == {"main.py": CODE, ".env.example": "A="}


async def test_an_image_needs_no_code(registry):
    module = (await registry.publish([spec(env=Kind.DOCKER, image="postgres")])).get("greet")

    assert tree(module.root) == {}


# -- the entry -------------------------------------------------------------------------------------------------------

ENTRIES = {
    "main": ({"main.py": CODE, "handler.py": ""}, "handler", "main.py", "handler", False),
    "package": ({"__init__.py": CODE, "x.py": ""}, "handler", "jobs/__init__.py", "handler", True),
    "main of a package": ({"main.py": CODE, "__init__.py": ""}, "handler", "jobs/main.py", "handler", True),
    "file of a package": ({"jobs/x.py": CODE, "__init__.py": ""}, "jobs/x:run", "jobs/jobs/x.py", "run", True),
    "handler": ({"handler.py": CODE, "x.py": ""}, "run", "handler.py", "run", False),
    "named file": ({"main.py": "", "report.py": CODE}, "report:run", "report.py", "run", False),
    "named with suffix": ({"report.py": CODE}, "report.py:run", "report.py", "run", False),
    "file of a folder": ({"jobs/report.py": CODE}, "jobs/report:run", "jobs/report.py", "run", False),
    "named package": ({"jobs/__init__.py": CODE}, "jobs:run", "jobs/__init__.py", "run", False),
}


@pytest.mark.parametrize(("files", "handler", "entry", "function", "package"), ENTRIES.values(), ids=ENTRIES)
async def test_the_file_that_has_the_handler(registry, folder, files, handler, entry, function, package):
    module = (await registry.publish([spec(path=folder(files), handler=handler)])).get("greet")

    assert str(module.entry.relative_to(module.root)) == entry
    assert (module.function, module.package) == (function, package)


@pytest.mark.parametrize("name", ["count_words.py", "email.py", "sum-rows.py"])
async def test_one_file_has_a_name_that_hides_no_library(registry, folder, name):
    path = folder({name: CODE, "other.py": ""}) / name
    module = (await registry.publish([spec(path=path)])).get("greet")

    assert tree(module.root) == {"main.py": CODE}
    assert module.entry.name == "main.py"


@pytest.mark.parametrize(
    ("name", "package"),
    {
        "pricing": "pricing",
        "my-app": "my_app",
        "2nd": "module_2nd",
        "email": "module_email",
        "class": "module_class",
    }.items(),
)
async def test_a_package_has_the_name_of_its_folder(registry, folder, name, package):
    path = folder({"__init__.py": CODE, "rules.py": ""})
    path = path.rename(path.with_name(name))
    module = (await registry.publish([spec(path=path)])).get("greet")

    assert tree(module.root) == {f"{package}/__init__.py": CODE, f"{package}/rules.py": ""}
    again = path.rename(path.with_name("renamed"))
    assert (await registry.publish([spec(path=again)])).get("greet").entry.parent.name == "renamed"


@pytest.mark.parametrize(
    ("entry", "package", "handler", "name", "placed"),
    [
        ("__init__.py", True, "handler", "module_email/__init__.py", {"module_email/__init__.py", "module_email/x.py"}),
        ("jobs/__init__.py", True, "jobs:run", "jobs/__init__.py", {"jobs/__init__.py", "x.py"}),
        ("main.py", False, "handler", "main.py", {"main.py", "__init__.py"}),
        ("email.py", False, None, "main.py", {"main.py"}),
    ],
)
def test_versions_that_earlier_runners_stored_have_a_layout(entry, package, handler, name, placed):
    layout = Layout.stored("email", entry, package, handler)
    files = {"email.py": b""} if handler is None else {entry: b"", "__init__.py" if entry == "main.py" else "x.py": b""}

    assert layout.entry == name
    assert {*layout.placed(files)} == placed


async def test_a_missing_file_is_reported_with_the_searched_names(registry, folder):
    root = folder({"x.py": CODE, "y.py": ""})

    failure = await refused(registry, spec(path=root))
    assert (failure.kind, failure.field) == (ErrorKind.BAD_INPUT, "handler")
    assert failure.message.startswith("greet: none of main.py, __init__.py, handler.py is in the folder")
    failure = await refused(registry, spec(path=root, handler="z:run"))
    assert "none of z.py, z/__init__.py, z is in the folder" in failure.message


# -- what cannot be published ----------------------------------------------------------------------------------------


async def test_one_bad_module_changes_nothing(registry, folder):
    await registry.publish([spec("a")])

    failure = await refused(registry, spec("a", timeout=9.0), spec("b", path=folder({"x.py": ""}), handler="y:run"))

    assert failure.message.startswith("b: ")


async def test_all_missing_secrets_are_reported_with_their_modules(registry):
    await registry.publish([spec("a")])
    registry.publisher.secrets = partial(secret_values, environ={"OPERATO_SECRET_C": "x"})

    failure = await refused(registry, spec("a", secrets=("A", "C")), spec("b", secrets=("B",)), spec("c"))

    assert (failure.kind, failure.field) == (ErrorKind.BAD_INPUT, "secrets")
    assert failure.message.splitlines() == [
        "a.secrets.A: OPERATO_SECRET_A is not set in the runner's environment; set it, or remove A from `secrets`",
        "b.secrets.B: OPERATO_SECRET_B is not set in the runner's environment; set it, or remove B from `secrets`",
    ]


@pytest.mark.parametrize("what", ["file", "folder"])
async def test_code_that_vanished_between_reading_and_publishing(registry, folder, what):
    root = folder({"main.py": CODE})
    path = root / "main.py" if what == "file" else root
    await registry.publish([spec(path=path)])
    shutil.rmtree(root)

    failure = await refused(registry, spec(path=path))

    assert (failure.kind, failure.field) == (ErrorKind.BAD_INPUT, "path")
    assert failure.message == f"greet.path: {path} does not exist (any more); bring it back, or change `path`"


async def test_an_empty_folder(registry, folder):
    root = folder({"main.py": CODE})
    (root / "main.py").unlink()

    assert "none of main.py" in (await refused(registry, spec(path=root))).message


async def test_pipes_and_devices_in_a_folder_are_refused_and_not_waited_for(registry, folder):
    root = folder({"main.py": CODE})
    os.mkfifo(root / "pipe")
    assert "pipe is not a regular file; take it out" in (await refused(registry, spec(path=root))).message
    (root / "pipe").unlink()
    (root / "zero").symlink_to("/dev/zero")
    assert "zero is not a regular file; take it out" in (await refused(registry, spec(path=root))).message


async def test_links_in_a_circle_are_refused(registry, folder):
    root = folder({"main.py": CODE})
    (root / "a").symlink_to(root / "b")
    (root / "b").symlink_to(root / "a")
    (root / "up").symlink_to(root)

    failure = await refused(registry, spec(path=root))

    assert "the code cannot be read" in failure.message


async def test_names_that_are_not_text_are_kept(registry, folder):
    root = folder({"main.py": CODE})
    (root / os.fsdecode(b"caf\xe9.txt")).write_text("latin")

    module = (await registry.publish([spec(path=root)])).get("greet")

    assert (module.root / os.fsdecode(b"caf\xe9.txt")).read_text() == "latin"


async def test_code_that_cannot_be_read(registry, folder):
    root = folder({"main.py": CODE})
    (root / "lost.py").symlink_to("nowhere.py")

    failure = await refused(registry, spec(path=root))
    assert (failure.kind, failure.field) == (ErrorKind.BAD_INPUT, "path")
    assert failure.message.startswith("greet: the code cannot be read: ")


async def test_a_folder_that_holds_data(registry, folder, monkeypatch):
    monkeypatch.setattr(module_under_test, "MAX_CODE_BYTES", 100)
    root = folder({"main.py": CODE, "data.csv": "x" * 101})

    failure = await refused(registry, spec(path=root))
    assert (failure.kind, failure.field) == (ErrorKind.TOO_LARGE, "path")


async def test_a_full_disk_leaves_nothing(registry, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "chmod", full)
        assert "No space left" in (await refused(registry, spec())).message
    assert kept_code(registry) == []
    assert registry.snapshot.modules == {}

    await registry.publish([spec()])


async def test_cancelled_it_has_changed_nothing(registry):
    await registry.publish([spec("a")])
    before = registry.snapshot
    with trio.CancelScope() as scope:
        scope.cancel()
        await registry.publish([spec("b")])

    assert scope.cancelled_caught
    assert registry.snapshot is before


async def test_publishing_twice_at_once_is_one_after_the_other(registry):
    async with trio.open_nursery() as nursery:
        for version in ("1", "2", "3"):
            nursery.start_soon(registry.publish, [spec(version=version, code=CODE + version)])

    assert len(kept_code(registry)) == 3
    module = registry.snapshot.get("greet")
    assert module.entry.read_text() == CODE + module.ref.version


async def test_collect_removes_what_no_module_uses(registry):
    await registry.publish([spec("a"), spec("b")])
    (registry.publisher.code_dir / ".tmp-crashed").mkdir()
    await registry.publish([spec("b")])
    await registry.collect()

    assert kept_code(registry) == [registry.snapshot.get("b").root.name]


async def test_collect_before_anything_was_published_makes_and_removes_nothing(registry):
    await registry.collect()

    assert registry.snapshot == RegistrySnapshot()
    assert not registry.publisher.code_dir.exists()


# -- reading ---------------------------------------------------------------------------------------------------------


async def test_an_unknown_name_is_answered_with_similar_names(registry):
    await registry.publish([spec("greeter"), spec("count")])

    for name, message in (
        ("greter", "there is no module 'greter'; did you mean greeter?"),
        ("zzz", "there is no module 'zzz'"),
    ):
        with pytest.raises(RunnerError) as caught:
            registry.snapshot.get(name)
        failure = caught.value.failure
        assert (failure.kind, failure.field, failure.message) == (ErrorKind.NOT_FOUND, "name", message)


async def test_an_unknown_version(registry):
    await registry.publish([spec(version="2")])

    assert registry.snapshot.get("greet", "2").ref.version == "2"
    with pytest.raises(RunnerError) as caught:
        registry.snapshot.get("greet", "1")
    failure = caught.value.failure
    assert (failure.kind, failure.field) == (ErrorKind.NOT_FOUND, "version")
    assert failure.message == "module 'greet' has no version '1'; it has 2"


async def test_find_takes_every_condition_together(registry):
    await registry.publish(
        [
            spec("words", tags=("text",), description="Counts WORDS"),
            spec("lines", tags=("text", "fast"), description="counts lines"),
            spec("sums", env=Kind.VENV, tags=("fast",)),
        ]
    )

    def names(**conditions):
        return [module.spec.name for module in registry.snapshot.find(**conditions)]

    assert names() == ["lines", "sums", "words"]
    assert names(envs=[Kind.VENV]) == ["sums"]
    assert names(tags=["text"]) == ["lines", "words"]
    assert names(tags=["text", "fast"]) == ["lines"]
    assert names(envs=[Kind.VENV, Kind.INLINE], tags=["fast"]) == ["lines", "sums"]
    assert names(tags=["text"], text="words") == ["words"]
    assert names(text="COUNTS") == ["lines", "words"]
    assert names(text="um") == ["sums"]
    assert names(envs=[Kind.VENV], tags=["text"]) == []
    assert RegistrySnapshot().find() == []


async def test_only_the_operators_own_inline_module_that_asks_for_it_runs_in_process(registry):
    await registry.publish([spec(isolation=Isolation.NONE)])
    allowed = registry.snapshot.get("greet")

    assert may_run_in_process(allowed)
    assert not may_run_in_process(attrs.evolve(allowed, trusted=False))
    assert not may_run_in_process(attrs.evolve(allowed, spec=spec()))
    assert not may_run_in_process(attrs.evolve(allowed, spec=spec(isolation=Isolation.NONE, env=Kind.VENV)))
