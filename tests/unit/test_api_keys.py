"""Unit: API keys are stored as hashes, found by their secret, and gone for good once a revocation is recorded."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from hashlib import sha256

import pytest
import trio

from actors.keys import keys as module_under_test
from actors.keys.keys import ApiKeys
from actors.keys.stored import KeyFile
from protocol.errors import ErrorKind, RunnerError
from protocol.model import KEY
from tests.support import wait_until
from tests.tokens import Clock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "keys.db"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def keys(path, clock):
    opened = ApiKeys(KeyFile.open(path), clock)
    yield opened
    opened._file.close()


def again(path):
    """Return the keys as the next runner finds them."""
    opened = ApiKeys.open(path)
    opened._file.close()
    return opened


async def made(keys, name="ci", **fields):
    values = {"scopes": ["executions:run"], "modules": (), "expires_at": None, "subject": "kim", **fields}
    return await keys.create(name, **values)


def changed(path, statement):
    with closing(sqlite3.connect(path)) as link, link:
        link.execute(statement)


async def test_a_key_is_found_by_its_secret_also_by_the_next_runner(keys, path, clock):
    key, secret = await made(keys, scopes=["executions:run", "modules:read"], modules=("a-*",), expires_at=clock() + 9)

    assert KEY.fullmatch(secret)[1] == key.stored.id
    assert keys.find(secret) is key
    assert again(path).find(secret).stored == key.stored
    assert (key.stored.created_by, key.stored.modules) == ("kim", ("a-*",))
    assert path.stat().st_mode & 0o777 == 0o600


async def test_no_file_has_the_key(keys, path):
    _, secret = await made(keys)
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())

    assert secret.encode() not in content
    assert secret.rpartition("_")[2].encode() not in content
    assert sha256(secret.encode()).hexdigest().encode() in content


@pytest.mark.parametrize("change", [lambda s: s[:-1] + ("0" if s[-1] != "0" else "1"), lambda s: s + "0", str.upper])
async def test_another_secret_finds_no_key(keys, change):
    _, secret = await made(keys)

    assert keys.find(change(secret)) is None


async def test_a_revoked_key_stays_revoked(keys, path, clock):
    key, secret = await made(keys)
    ended = []
    key.watchers.add(lambda: ended.append(keys.find(secret).revoked))
    await keys.revoke(key, subject="lee")

    assert ended == [True]
    found = again(path).find(secret)
    assert (found.revoked, found.stored.revoked_by, found.stored.revoked_at) == (True, "lee", clock())
    assert keys.statistics() == {"valid": 0, "ended": 1}


async def test_a_second_revocation_changes_nothing(keys, path):
    key, secret = await made(keys)
    await keys.revoke(key, subject="lee")
    await keys.revoke(key, subject="ann")

    assert again(path).find(secret).stored.revoked_by == "lee"


async def test_a_key_is_refused_at_once_where_its_revocation_cannot_be_recorded(keys, path):
    key, secret = await made(keys)
    kept = path.rename(path.with_name("elsewhere"))
    with pytest.raises(RunnerError) as problem:
        await keys.revoke(key, subject="lee")

    assert problem.value.failure.kind is ErrorKind.UNAVAILABLE
    assert keys.find(secret).revoked
    kept.rename(path)
    await keys.revoke(key, subject="ann")
    assert again(path).find(secret).stored.revoked_by == "lee"


async def test_nothing_is_made_that_cannot_be_recorded(keys, path):
    await made(keys)
    path.unlink()
    with pytest.raises(RunnerError) as problem:
        await made(keys, "other")

    assert problem.value.failure.kind is ErrorKind.UNAVAILABLE
    assert [key.stored.name for key in keys.all()] == ["ci"]


async def test_a_name_belongs_to_one_valid_key(keys, clock):
    first, _ = await made(keys)
    with pytest.raises(RunnerError) as problem:
        await made(keys)
    assert (problem.value.failure.kind, problem.value.failure.field) == (ErrorKind.CONFLICT, "name")

    await keys.revoke(first, subject="kim")
    await made(keys, expires_at=clock() + 5)
    clock.now += 6
    await made(keys)
    assert [key.ended(clock()) for key in keys.all()] == [False, True, True]


async def test_two_callers_do_not_get_the_same_name(keys):
    outcomes = []

    async def one():
        try:
            outcomes.append((await made(keys))[0].stored.name)
        except RunnerError as problem:
            outcomes.append(problem.failure.kind)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
    assert sorted(outcomes) == ["ci", ErrorKind.CONFLICT]


async def test_ended_keys_make_room_and_valid_ones_do_not(keys, path, monkeypatch):
    monkeypatch.setattr(module_under_test, "MAX_KEYS", 2)
    first, _ = await made(keys, "a")
    _, second = await made(keys, "b")
    with pytest.raises(RunnerError) as problem:
        await made(keys, "c")
    assert problem.value.failure.kind is ErrorKind.OVERLOADED

    await keys.revoke(first, subject="kim")
    await made(keys, "c")
    assert [key.stored.name for key in keys.all()] == ["c", "b"]
    assert sorted(key.stored.name for key in again(path).all()) == ["b", "c"]
    assert again(path).find(second) is not None


async def test_the_last_use_is_written_now_and_then(keys, path, clock, monkeypatch):
    monkeypatch.setattr(module_under_test, "USE_SECONDS", 0.001)
    key, secret = await made(keys)
    assert again(path).get(key.stored.id).used_at is None

    keys.find(secret)
    async with trio.open_nursery() as nursery:
        await nursery.start(keys.run)
        await wait_until(lambda: again(path).get(key.stored.id).used_at is not None, "its use is not written")
        nursery.cancel_scope.cancel()
    assert again(path).get(key.stored.id).used_at == key.used_at == clock()


async def test_the_last_use_is_written_at_the_end(keys, path, clock):
    key, secret = await made(keys)
    keys.find(secret)
    await keys.aclose()

    assert again(path).get(key.stored.id).used_at == clock()


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "update keys set content = replace(content, 'executions:run', 'admin')",
        "update keys set content = x'00'",
        "update keys set digest = x'00'",
        "update keys set digest = 7",
    ],
)
async def test_a_row_that_was_altered_gives_no_rights(keys, path, statement):
    key, secret = await made(keys)
    keys._file.close()
    changed(path, statement)
    found = again(path)

    assert found.find(secret) is None
    assert found.get(key.stored.id) is None
    assert found.damaged


async def test_what_can_be_read_of_a_damaged_file_is_kept(keys, path):
    secrets = [(await made(keys, f"key-{number}", modules=("m" * 150,) * 4))[1] for number in range(60)]
    keys._file.close()
    data = bytearray(path.read_bytes())
    data[20480:24576] = bytes(4096)
    path.write_bytes(data)
    found = again(path)

    assert found.damaged
    assert 0 < sum(found.find(secret) is not None for secret in secrets) < 60
    assert list(path.parent.glob("keys.db*-*")), "the damaged file is kept"


async def test_a_file_of_noise_is_set_aside(path):
    path.parent.mkdir()
    path.write_bytes(b"noise" * 4096)
    found = again(path)

    assert found.damaged
    assert found.all() == []
