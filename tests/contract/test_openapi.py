"""Contract: the routes are those of the table of operations; the document follows the modules and its reader."""

from __future__ import annotations

import json

from attrs import evolve

from config.settings import AuthSettings
from runner.auth.principal import Principal, Scope
from runner.auth.tokens import Verifier
from runner.rest.app import make_app
from runner.rest.openapi.document import Documents
from runner.rest.openapi.operations import OPERATIONS
from tests.support import inline, open_service

ECHO = inline("echo", "def handler(input): return input", input_schema={"type": "string"})
OTHER = inline("other", "def handler(input): return input", description="Another one.")
EVERYBODY = Principal("somebody", frozenset({Scope.ADMIN}))


async def test_every_route_is_in_the_table_and_every_entry_is_served(tmp_path):
    async with open_service(tmp_path, [ECHO]) as service:
        site = make_app(service, Verifier(AuthSettings(), secret="s" * 48))

    ahead = {(each.operation.method, each.operation.path) for each in site.ahead.values()}
    behind = {
        (method, rule.rule)
        for rule in site.behind.make().url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }

    assert not ahead & behind
    assert ahead | behind == {(op.method, op.path) for op in OPERATIONS}
    assert len({op.name for op in OPERATIONS}) == len(OPERATIONS)


async def test_a_document_is_made_once_for_each_reader_until_modules_change(tmp_path):
    async with open_service(tmp_path, [ECHO, OTHER]) as service:
        documents = Documents(service.registry, "1.2.3")
        first = documents.get(EVERYBODY)
        few = documents.get(evolve(EVERYBODY, subject="x", modules=("ech*",)))

        assert documents.get(evolve(EVERYBODY, subject="another")) is first
        assert documents.get(evolve(EVERYBODY, modules=("ech*",))) is few
        assert documents.get(None) is documents.get(Principal("x", frozenset({Scope.MODULES_READ})))
        assert [b'"/modules/execute/other"' in shown for shown in (first, few, documents.get(None))] == [
            True,
            False,
            False,
        ]

        await service.registry.publish([ECHO])
        after = documents.get(EVERYBODY)

    assert b'"/modules/execute/other"' not in after
    assert json.loads(after)["info"]["version"] == "1.2.3"


async def test_readers_of_many_different_modules_do_not_fill_the_memory(tmp_path):
    async with open_service(tmp_path, [ECHO]) as service:
        documents = Documents(service.registry, "1")
        kept = documents.get(EVERYBODY)
        for number in range(50):
            documents.get(evolve(EVERYBODY, modules=(f"m{number}",)))
            assert documents.get(EVERYBODY) is kept, "a document in use stays"

        assert len(documents._made) <= 8


async def test_an_unchanged_module_is_not_described_again(tmp_path):
    """A document is made on the one event loop."""
    async with open_service(tmp_path, [ECHO, OTHER]) as service:
        documents = Documents(service.registry, "1")
        documents.get(EVERYBODY)
        first = dict(documents._calls)
        documents.get(evolve(EVERYBODY, modules=("echo",)))
        await service.registry.publish([ECHO, evolve(OTHER, description="Changed.")])
        documents.get(EVERYBODY)
        second = dict(documents._calls)

    same = {digest for digest in first if second.get(digest) is first[digest]}
    assert [first[digest].name for digest in same] == ["echo"]
    assert sorted(call.name for call in second.values()) == ["echo", "other"]
