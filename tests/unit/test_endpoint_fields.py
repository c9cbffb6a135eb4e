"""Unit: endpoints in module definitions: their fields, mistakes in them, and conflicts between paths."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from actors.registry import Published, Routes
from config import paths
from config.mistakes import ConfigError
from config.modules import (
    Algorithm,
    Auth,
    Encoding,
    EndpointSpec,
    Method,
    ModuleSpec,
    Scheme,
    Signature,
    read_modules,
    spec_from_mapping,
    spec_to_mapping,
)
from config.paths import PathTree
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Kind, ModuleRef

CODE = "def handler(input): return input"


def read(*endpoints, **fields):
    """Return the endpoints of a module."""
    data = {"name": "m", "env": "inline", "code": CODE, "secrets": ["HOOK"], "endpoints": list(endpoints), **fields}
    return spec_from_mapping(data, base=None, allow_path=False)


def signature(**fields):
    return {"path": "/a", "auth": "signature", "signature": {"secret": "HOOK", **fields}}


# -- fields ------------------------------------------------------------------------------------------------------------


def test_endpoints_are_read():
    spec = read(
        {"path": "/a"},
        {"path": "/github/{event}", "methods": "POST", **signature(scheme="github") | {"path": "/github/{event}"}},
        {"path": "/files/{rest...}", "methods": ["GET", "put", "GET"], "auth": "none", "wait": False},
        signature(header="X-Sig", algorithm="hmac-sha1", encoding="base64", prefix="v=") | {"path": "/b"},
        signature(scheme="stripe", tolerance="10m", secret=["HOOK", "HOOK"]) | {"path": "/c"},
    )

    assert spec.endpoints == (
        EndpointSpec("/a", (Method.POST,), Auth.TOKEN, None, wait=True),
        EndpointSpec("/github/{event}", (Method.POST,), Auth.SIGNATURE, Signature(("HOOK",), Scheme.GITHUB)),
        EndpointSpec("/files/{rest...}", (Method.GET, Method.PUT), Auth.NONE, wait=False),
        EndpointSpec(
            "/b",
            auth=Auth.SIGNATURE,
            signature=Signature(("HOOK",), None, "X-Sig", Algorithm.SHA1, Encoding.BASE64, "v="),
        ),
        EndpointSpec("/c", auth=Auth.SIGNATURE, signature=Signature(("HOOK",), Scheme.STRIPE, tolerance=600.0)),
    )
    assert spec_from_mapping(spec_to_mapping(spec), base=None, allow_path=False) == spec, "as written and read again"


@pytest.mark.parametrize("none", [None, []])
def test_a_module_may_have_no_endpoints(none):
    assert read(endpoints=none).endpoints == ()


@pytest.mark.parametrize(
    ("endpoint", "where", "words"),
    [
        ("/a", "[0]", "is not a mapping"),
        ({}, "[0].path", "is missing"),
        ({"path": None}, "[0].path", "is not text"),
        ({"path": ""}, "[0].path", "is empty"),
        ({"path": "a"}, "[0].path", "write '/a'"),
        ({"path": "/"}, "[0].path", "a segment of '/' is empty"),
        ({"path": "/a/"}, "[0].path", "is empty"),
        ({"path": "/a//b"}, "[0].path", "is empty"),
        ({"path": "/a/../b"}, "[0].path", "'..' is not one"),
        ({"path": "/a b"}, "[0].path", "'a b' is not one"),
        ({"path": "/a%2fb"}, "[0].path", "is not one"),
        ({"path": "/a?b"}, "[0].path", "is not one"),
        ({"path": "/ü"}, "[0].path", "is not one"),
        ({"path": "/x-{name}"}, "[0].path", "is not one"),
        ({"path": "/{}"}, "[0].path", "is not one"),
        ({"path": "/{1a}"}, "[0].path", "is not one"),
        ({"path": "/{a}/{a}"}, "[0].path", "a name twice"),
        ({"path": "/{a}/{a...}"}, "[0].path", "a name twice"),
        ({"path": "/{a...}/b"}, "[0].path", "write it last"),
        ({"path": "/a" * 17}, "[0].path", "16 segments"),
        ({"path": "/" + "a" * 255}, "[0].path", "255 characters"),
        ({"path": "/a", "methods": []}, "[0].methods", "is empty"),
        ({"path": "/a", "methods": ["POTS"]}, "[0].methods[0]", "is not one of GET, POST"),
        ({"path": "/a", "methods": ["OPTIONS"]}, "[0].methods[0]", "is not one of"),
        ({"path": "/a", "methods": {"GET": 1}}, "[0].methods", "is not a list"),
        ({"path": "/a", "auth": "basic"}, "[0].auth", "token, key, signature, none"),
        ({"path": "/a", "auth": None}, "[0].auth", "is missing"),
        ({"path": "/a", "wait": "no"}, "[0].wait", "neither true nor false"),
        ({"path": "/a", "timeout": 1}, "[0].timeout", "unknown field"),
        ({"path": "/a", "auth": "signature"}, "[0].signature", "{scheme: github, secret: NAME}"),
        ({"path": "/a", "auth": "none", "signature": {}}, "[0].signature", "only with `auth: signature`"),
        ({"path": "/a", "auth": "signature", "signature": "github"}, "[0].signature", "is not a mapping"),
        (signature(), "[0].signature", "needs `scheme`"),
        (signature(scheme="git"), "[0].signature.scheme", "github, stripe, slack, standard"),
        (signature(scheme="github", header="X"), "[0].signature.header", "fixed by `scheme: github`"),
        (signature(scheme="github", algorithm="hmac-sha1"), "[0].signature.algorithm", "fixed by"),
        (signature(scheme="github", encoding="hex"), "[0].signature.encoding", "fixed by"),
        (signature(scheme="github", prefix="x"), "[0].signature.prefix", "fixed by"),
        (signature(scheme="github", tolerance=1), "[0].signature.tolerance", "no time"),
        (signature(scheme="stripe", tolerance=0), "[0].signature.tolerance", "out of range"),
        (signature(scheme="stripe", tolerance="2d"), "[0].signature.tolerance", "out of range"),
        (signature(header="X-A"), "[0].signature.algorithm", "is missing"),
        (signature(header="X A", algorithm="hmac-sha1"), "[0].signature.header", "the name of a header"),
        (signature(header="X", algorithm="md5"), "[0].signature.algorithm", "hmac-sha256"),
        (signature(header="X", algorithm="hmac-sha1", encoding="hexx"), "[0].signature.encoding", "did you mean"),
        (signature(header="X", algorithm="hmac-sha1", prefix="a\n"), "[0].signature.prefix", "visible"),
        (signature(header="X", algorithm="hmac-sha1", tolerance=1), "[0].signature.tolerance", "has no time"),
        (signature(scheme="github", secret="HOOKS"), "[0].signature.secret", "did you mean 'HOOK'?"),
        (signature(scheme="github", secret=["HOOK", "X"]), "[0].signature.secret[1]", "add it: `secrets: [X]`"),
        (signature(scheme="github", secret=None), "[0].signature.secret", "names 0 secrets"),
        (signature(scheme="github", secret=[]), "[0].signature.secret", "names 0 secrets"),
        (signature(scheme="github", secret=["HOOK"] * 5), "[0].signature.secret", "at most 4"),
        (signature(scheme="github", secret=5), "[0].signature.secret", "is not a list"),
        (signature(scheme="github", token="x"), "[0].signature.token", "unknown field"),
    ],
)
def test_a_wrong_endpoint_is_named_with_the_remedy(endpoint, where, words):
    with pytest.raises(ConfigError) as caught:
        read(endpoint)
    found = [mistake.message for mistake in caught.value.mistakes if mistake.field == f"endpoints{where}"]
    assert any(words in message for message in found), caught.value


@pytest.mark.parametrize("value", [{"path": "/a"}, "/a", 5])
def test_endpoints_are_a_list(value):
    with pytest.raises(ConfigError, match="is not a list of endpoints"):
        read(endpoints=value)


TAKES_REQUESTS = [
    "from operato import Request\ndef handler(request: Request): return 1",
    "from operato import Request\ndef handler(input: Request | None, context): return 1",
    "import operato\ndef handler(r: operato.Request): return 1",
    "def handler(input): return 1",
    "def handler(input: dict): return 1",
    "def handler(input: dict | str): return 1",
    "def handler(event, /, context): return 1",
    "def handler(**more): return 1",
    "from elsewhere import Request\n@decorated\ndef handler(name, count): return 1",
]
TAKES_NONE = [
    "def handler(): return 1",
    "def handler(request): return 1",
    "def handler(name: str, count: int = 1): return 1",
    "def handler(input: str): return 1",
    "def handler(input: bytes): return 1",
    "from typing import Literal\ndef handler(input: Literal['a']): return 1",
    "from typing import TypedDict\nclass Order(TypedDict):\n    item: str\ndef handler(input: Order): return 1",
]


@pytest.mark.parametrize("code", TAKES_REQUESTS)
def test_handlers_that_take_requests_may_have_endpoints(code):
    assert read({"path": "/a"}, code=code).endpoints


@pytest.mark.parametrize("code", TAKES_NONE)
def test_a_handler_that_takes_no_request_has_no_endpoints(code):
    with pytest.raises(ConfigError, match="one parameter with the hint `Request`"):
        read({"path": "/a"}, code=code)
    assert read(code=code).endpoints == ()
    schema = {"type": "object"}
    assert read({"path": "/a"}, code=code, input_schema=schema).input_schema == schema


def test_a_module_has_at_most_100_endpoints():
    with pytest.raises(ConfigError, match="101 entries; the limit is 100"):
        read(*({"path": f"/{number}"} for number in range(101)))


# -- conflicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        ("/a", "/a", True),
        ("/a", "/b", False),
        ("/a", "/a/b", False),
        ("/{x}", "/a", True),
        ("/{x}", "/{y}", True),
        ("/{x}/b", "/a/{y}", True),
        ("/{x}/b", "/a/c", False),
        ("/{x}/b", "/a", False),
        ("/{x...}", "/a", True),
        ("/{x...}", "/a/b/c", True),
        ("/{x...}", "/{y...}", True),
        ("/a/{x...}", "/a", False),
        ("/a/{x...}", "/b/c", False),
        ("/a/{x...}", "/{y}/c/d", True),
        ("/a/b/{x...}", "/{y...}", True),
        ("/a/b/{x...}", "/{y}/c/{z...}", False),
    ],
)
def test_paths_conflict_that_one_request_could_mean(one, other, conflict):
    for first, second in ((one, other), (other, one)):
        tree: PathTree[str] = PathTree()
        tree.add(first, "first")
        assert list(tree.overlapping(second)) == ["first"] * conflict, (first, second)


def test_conflicts_are_those_of_paths_that_exist():
    """Two templates overlap exactly if some path is found by both."""
    parts = ("a", "b", "{x}", "{x...}")
    templates = [
        "/" + "/".join(each)
        for size in (1, 2, 3)
        for each in itertools.product(parts, repeat=size)
        if "{x...}" not in each[:-1]
    ]
    texts = ["/" + "/".join(each) for size in (1, 2, 3, 4) for each in itertools.product("abc", repeat=size)]
    trees = {}
    for template in templates:
        trees[template] = PathTree()
        trees[template].add(template, template)
    found = {template: {path for path in texts if any(tree.find(path))} for template, tree in trees.items()}
    for one, other in itertools.product(templates, repeat=2):
        assert any(trees[one].overlapping(other)) == bool(found[one] & found[other]), (one, other)


def test_endpoints_of_one_module_do_not_conflict():
    with pytest.raises(ConfigError, match=r"endpoints\[1\].path: /a/b conflicts with /\{x\}/b above"):
        read({"path": "/{x}/b"}, {"path": "/a/b"})
    assert len(read({"path": "/a", "methods": ["GET"]}, {"path": "/a", "methods": ["PUT"]}).endpoints) == 2


def test_a_conflict_in_the_file_has_its_line_and_names_both(tmp_path):
    modules = {
        name: {"env": "inline", "code": CODE, "endpoints": [{"path": path}]}
        for name, path in (("one", "/{event}"), ("two", "/push"), ("three", "/a/b"))
    }
    file = tmp_path / "modules.yaml"
    file.write_text(yaml.safe_dump({"modules": modules}, sort_keys=False))

    read_file, [mistake] = read_modules(file)

    assert {spec.name for spec in read_file.modules} == {"one", "two", "three"}
    assert mistake.field == "two.endpoints[0].path"
    assert mistake.message == (
        "POST /push conflicts with POST /{event} of module 'one': a request could mean both; change a path or a method"
    )
    assert "path: /push" in file.read_text().splitlines()[mistake.line - 1]


# -- routes ------------------------------------------------------------------------------------------------------------


def published(name, *paths, trusted=False):
    spec = ModuleSpec(name=name, env=Kind.INLINE, code=CODE, endpoints=tuple(map(EndpointSpec, paths)))
    here = Path("/nowhere")
    return Published(ModuleRef(name, "1"), spec, name, name, here, here, "handler", False, 0.0, trusted=trusted)


def test_routes_are_found_with_their_names():
    routes = Routes.of([published("one", "/a/{x}", "/b"), published("two", "/a/{y}/c", "/f/{rest...}")])

    def find(path):
        return [(route.module.ref.name, route.endpoint.path, names) for route, names in routes.find(path)]

    assert find("/a/1") == [("one", "/a/{x}", {"x": "1"})]
    assert find("/a/%2F%C3%BC") == [("one", "/a/{x}", {"x": "/ü"})]
    assert find("/a/1/c") == [("two", "/a/{y}/c", {"y": "1"})]
    assert find("/f/x/%2e./y") == [("two", "/f/{rest...}", {"rest": "x/../y"})]
    for path in ("", "/", "/a", "/a/", "/b/", "//b", "/f", "/f/", "b", "/B"):
        assert find(path) == [], path
    assert routes.hidden == ()


def test_of_two_modules_that_conflict_that_of_the_file_is_served():
    registered, own = published("a", "/x"), published("z", "/{y}", trusted=True)

    routes = Routes.of([registered, own])

    [(route, _)] = routes.find("/x")
    assert route.module is own
    assert [(one.module, other.module) for one, other in routes.hidden] == [(registered, own)]
    with pytest.raises(RunnerError) as caught:
        routes.check(registered)
    failure = caught.value.failure
    assert (failure.kind, failure.field) == (ErrorKind.CONFLICT, "endpoints[0].path")
    assert "POST /x conflicts with POST /{y} of module 'z'" in failure.message
    routes.check(published("z", "/x"))  # of the same module


def test_finding_a_route_takes_no_more_steps_among_many(monkeypatch):
    """By its segments: as many nodes of the tree are looked at among 3 endpoints as among 6000."""
    steps = []
    matches = paths._matches

    def counted(*arguments):
        steps.append(arguments)
        return matches(*arguments)

    monkeypatch.setattr(paths, "_matches", counted)
    taken = []
    for count in (1, 2000):
        routes = Routes.of(
            published(f"m{module}", f"/m{module}/a", f"/m{module}/{{x}}/b", f"/m{module}/c/{{rest...}}")
            for module in range(count)
        )
        steps.clear()
        for path in ("/m0/q/b", "/m0/c/a/b/c", "/m0/c/b", "/other", "/m0/a"):
            routes.find(path)
        taken.append(len(steps))

    assert taken[0] == taken[1]
