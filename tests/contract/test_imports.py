"""Contract: what user code can import, and by what name its own module is imported, in every kind of worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import protocol
from environments.local.inprocess import InProcess
from protocol.errors import ErrorKind
from protocol.model import Isolation, Kind
from tests.contract.test_guest_pythons import PYTHONS
from tests.programs import install
from tests.support import PATIENCE
from tests.workers import WORKERS, chosen

GUEST = Path(protocol.__file__).with_name("guest.py")
KEPT = [name for name in WORKERS if not name.endswith("fresh")]


@pytest.fixture(params=KEPT)
def how(request):
    """Return the fields that choose the kind of worker."""
    return chosen(request)


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a folder of a module."""

    def write(files, name="shop"):
        for relative, text in files.items():
            path = tmp_path / name / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / name

    return write


@pytest.fixture
def short():
    """Return a folder in which sockets can be: their paths are at most 108 bytes long."""
    with tempfile.TemporaryDirectory(prefix="imports-") as path:
        yield path


# -- names that the standard library has too -------------------------------------------------------------------------


NAMED = {
    "email": "from email.message import EmailMessage\ndef handler(input): return EmailMessage().get_content_type()",
    "queue": "from concurrent.futures import ThreadPoolExecutor\n"
    "def handler(input): return list(ThreadPoolExecutor(1).map(str, ['text/plain']))[0]",
    "asyncio": "async def handler(input): return 'text/plain'",
    "select": "import select\ndef handler(input): return 'text/plain' if select.poll() else None",
    "inspect": "import functools\ndef same(f): return functools.wraps(f)(lambda *a: f(*a))\n"
    "@same\ndef handler(input): return 'text/plain'",
}
"""Code that needs what the name of its module could hide, by that name."""


@pytest.mark.parametrize("name", NAMED)
async def test_the_name_of_a_module_hides_nothing(rig, how, name):
    assert (await rig.run(NAMED[name], name=name, **how)).value == "text/plain"


@pytest.mark.parametrize("isolation", [each for each in Isolation if each is not Isolation.NONE])
async def test_a_module_named_traceback_has_tracebacks(rig, isolation):
    ran = await rig.run("def handler(input): return 1 / 0", name="traceback", isolation=isolation)

    assert ran.kind is ErrorKind.HANDLER_ERROR
    assert "in handler\n    def handler(input): return 1 / 0\n" in ran.failure.traceback


OWN = {
    "guest.py": "me = 'guest'\n",
    "parts.py": "me = 'parts'\n",
    "relay.py": "me = 'relay'\n",
    "values.py": "me = 'values'\n",
    "asyncio.py": "me = 'asyncio'\n",
    "json.py": "me = 'json'\n",
    "linecache.py": "me = 'linecache'\n",
    "select/__init__.py": "me = 'select'\n",
    "sys/data.txt": "",
    "main.py": """
import guest, parts, relay, values, asyncio, json, linecache, select, functools, sys
def same(f): return functools.wraps(f)(lambda *a: f(*a))
@same
async def handler(input):
    assert input, sys.version
    return [each.me for each in (guest, parts, relay, values, asyncio, json, linecache, select)]
""",
}


async def test_files_of_the_author_are_found_as_python_finds_them(rig, how, folder):
    module = await rig.publish(path=folder(OWN), **how)

    own = ["guest", "parts", "relay", "values", "asyncio", "json", "linecache", "select"]
    assert (await rig.call(module, 1)).value == own
    failed = await rig.call(module, 0)
    assert failed.kind is ErrorKind.HANDLER_ERROR
    assert "in handler\n" in failed.failure.traceback


async def test_a_library_that_user_code_replaced_is_not_used_by_the_worker(rig, how):
    code = """
    import functools, sys
    for name in ("asyncio", "inspect", "select", "traceback", "gc", "array", "json"):
        sys.modules[name] = name
    def same(f): return functools.wraps(f)(lambda *a: f(*a))
    @same
    async def handler(input):
        assert sys.modules["asyncio"] == "asyncio"
        return input / 2
    """
    module = await rig.publish(code, **how)

    assert (await rig.call(module, 6)).value == 3
    assert "in handler\n    return input / 2\n" in (await rig.call(module, "x")).failure.traceback


async def test_nothing_of_the_worker_program_is_seen(rig, how):
    code = """
    import sys, os
    def handler(input):
        main = sys.modules["__main__"]
        folders = [path for path in sys.path if os.path.exists(os.path.join(path, "guest.py"))]
        names = ("guest", "parts", "relay", "values")
        return [name for name in names if name in sys.modules or hasattr(main, name)] + folders
    """
    assert (await rig.run(code, **how)).value == []


STANDS = r"""
import json, os, sys
sys.path.insert(0, sys.argv[1]); import guest; del sys.path[0]
for each in ("guest", "parts", "values"): del sys.modules[each]
path = sys.path[:]
def check(root, name):
    open(root + "/%s.py" % name, "w").write("me = 1")
    open(root + "/main.py", "w").write("async def handler(input): return 1 // input")
    module = guest.Module({"root": root, "entry": root + "/main.py", "handler": "handler", "package": False})
    builtin = name in {*sys.builtin_module_names, *guest._FIRST}
    assert builtin or __import__(name).me == 1, "hidden"
    assert module.call(1, None, None) == 1
    assert guest.values.nesting(b"[[]]") == 2
    wraps, named = __import__("functools").wraps, {}
    exec("def typed(size: 'int', more: 'list' = ()): return size", named)
    for handler in (named["typed"], wraps(named["typed"])(lambda *args, **named: 1)):
        assert guest.wants_context(handler) is None
        assert guest.more("readers", "typed").plan(handler).arguments({"size": 3.0}, None) == ((), {"size": 3})
    try: module.call(0, None, None)
    except ZeroDivisionError as problem: assert "in handler" in guest.describe(problem)[2], guest.describe(problem)
wrong = []
for number, name in enumerate(sys.argv[3:]):
    root = sys.argv[2] + "/%d" % number
    os.mkdir(root)
    pid = os.fork()
    if pid == 0:
        try: check(root, name)
        except BaseException as problem: print(name, repr(problem)); os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1]: wrong.append(name)
print(wrong)
"""


@pytest.mark.parametrize("version", PYTHONS)
def test_the_worker_stands_every_file_of_the_author(version, tmp_path):
    """Beside the entry lies a file named like each library that the worker needs; elsewhere a few stand for them."""
    python = PYTHONS[version]
    here = version == "{}.{}".format(*sys.version_info)
    code = "import sys, asyncio, inspect, traceback, select, array, json, ctypes; print(*sys.modules)"
    needed = subprocess.run([python, "-ISc", code], capture_output=True, text=True, check=True).stdout.split()
    names = sorted({name for name in needed if name.isidentifier()} - {"__main__", "functools", "os"})
    few = ["ast", "asyncio", "linecache", "queue", "selectors", "types"]

    install(tmp_path / "guest")
    (tmp_path / "roots").mkdir()
    command = [python, "-ISc", STANDS, tmp_path / "guest", tmp_path / "roots", *(names if here else few)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE * 4)

    assert len(names) > 50
    assert ran.stdout.splitlines()[-1:] == ["[]"], ran.stdout + ran.stderr


# -- the entry is a module -------------------------------------------------------------------------------------------


PROBED = """
import importlib.util, inspect, os, pickle, sys
def double(x): return 2 * x
def handler(input):
    spec = __spec__
    assert sys.modules[__name__].__dict__ is globals()
    if __name__ != "__mp_main__":
        assert spec.name == __name__ and spec.origin == __file__ and spec.loader is __loader__ and __cached__
        assert importlib.util.find_spec(__name__) is spec
    assert "2 * x" in inspect.getsource(double)
    assert input is None or pickle.loads(input.encode("latin-1"))(3) == 6
    return [__name__, __package__, os.path.basename(__file__), pickle.dumps(double, 0).decode("latin-1")]
"""
ENTRIES = {
    "main.py": ("handler", "main", ""),
    "jobs/daily.py": ("jobs/daily:handler", "jobs.daily", "jobs"),
    "jobs/__init__.py": ("jobs:handler", "jobs", "jobs"),
    "a-b.py": ("a-b:handler", "__mp_main__", ""),
    "io.py": ("io:handler", "__mp_main__", ""),
}
"""The handler, and the module's name and package, by the file that has the handler."""


@pytest.mark.parametrize("entry", ENTRIES)
async def test_the_entry_is_a_module_that_is_pickled_by_name_over_versions(rig, how, folder, entry):
    handler, name, package = ENTRIES[entry]
    path = folder({entry: PROBED})
    first = (await rig.run("", path=path, handler=handler, **how)).value
    (path / entry).write_text(PROBED + "# changed\n")

    again = (await rig.run("", first[3], path=path, handler=handler, **how)).value

    assert again == first
    assert again[:2] == [name, package]


async def test_the_entry_of_code_is_a_module_too(rig, how):
    assert (await rig.run(PROBED, name="sum-rows", **how)).value[:3] == ["main", "", "main.py"]


POOLS = """
import concurrent.futures, multiprocessing as mp
import tempfile
ONE = 1
def add(x): return x + ONE
def handler(input):
    method, tempfile.tempdir = input
    context = mp.get_context(method)
    with context.Pool(1) as pool:
        found = pool.map(add, [1, 2])
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return found + list(pool.map(add, [3]))
"""
IN_CHILDREN = {
    "code": ({}, "handler"),
    "folder": ({"main.py": POOLS}, "handler"),
    "package": ({"__init__.py": "", "main.py": "from . import one\n" + POOLS, "one.py": ""}, "handler"),
    "no identifier": ({"a-b.py": POOLS}, "a-b:handler"),
}


WITH_CHILDREN = [
    (name, kind) for name in KEPT for kind in IN_CHILDREN if kind == "code" or name.startswith(("inline", "docker"))
]
"""The worker of other kinds is the same as that of inline, so one case is enough for them."""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize(("how", "kind"), WITH_CHILDREN, indirect=["how"])
async def test_children_import_the_entry(rig, how, folder, short, kind, method):
    value = [method, None if how["env"] is Kind.DOCKER else short]
    files, handler = IN_CHILDREN[kind]
    if files:
        ran = await rig.run("", value, path=folder(files, "sum-rows"), handler=handler, **how)
    else:
        ran = await rig.run(POOLS, value, name="sum-rows", **how)

    assert ran.value == [2, 3, 4]


# -- packages --------------------------------------------------------------------------------------------------------


PACKAGE = {
    "__init__.py": """
import importlib.resources, pkgutil
from pricing.rules import RATE
from . import rules
import pricing, plain, random
def handler(input):
    return [RATE, rules.RATE, pricing.handler is handler, plain.ME, random.randint(1, 1),
            importlib.resources.files(__package__).joinpath("a.txt").read_text(),
            pkgutil.get_data(__name__, "a.txt").decode(),
            sorted(each.name for each in pkgutil.iter_modules(pricing.__path__))]
""",
    "rules.py": "RATE = 7\n",
    "plain.py": "ME = 1\n",
    "random.py": "from . import rules\n",
    "a.txt": "hello",
}
PRICED = [7, 7, True, 1, 1, "hello", "hello", ["plain", "random", "rules"]]


async def test_a_folder_with_init_is_a_package_of_its_own_name(rig, how, folder):
    assert (await rig.run("", name="price", path=folder(PACKAGE, "pricing"), **how)).value == PRICED


async def test_a_package_may_have_its_handler_in_another_file(rig, how, folder):
    files = PACKAGE | {"__init__.py": "", "main.py": PACKAGE["__init__.py"].replace("__name__", "__package__")}
    files["main.py"] = files["main.py"].replace("pricing.handler", "__import__('pricing.main').main.handler")
    ran = await rig.run("", name="price", path=folder(files, "pricing"), **how)

    assert ran.value == [*PRICED[:-1], ["main", *PRICED[-1]]]


async def test_a_relative_import_without_a_package_says_what_to_write(rig, how, folder):
    path = folder({"main.py": "from . import helper\ndef handler(input): return 1\n", "helper.py": ""})

    failure = (await rig.run("", path=path, **how)).failure

    assert failure.kind is ErrorKind.LOAD_FAILED
    assert failure.message.startswith("attempted relative import with no known parent package; write `import name`, or")
    assert "line 1" in failure.traceback
    assert "importlib" not in failure.traceback


async def test_a_package_inside_of_the_runner(folder):
    files = {
        "__init__.py": "",
        "main.py": """
import importlib.resources, pickle, sys
from . import rules
def handler(input):
    assert pickle.loads(pickle.dumps(handler)) is handler and __spec__.name == __name__
    return [rules.RATE, importlib.resources.files(__package__).joinpath("a.txt").read_text()]
""",
        "rules.py": "RATE = 7",
        "a.txt": "hello",
    }
    entry = folder(files) / "main.py"
    inside, before = InProcess(), {*sys.modules}
    try:
        for digest in ("one", "two"):
            found = await inside.call(digest, entry, "handler", 1, b"null", seconds=PATIENCE)
            assert json.loads(found) == [7, "hello"]
    finally:
        inside.close()
    assert not [name for name in {*sys.modules} - before if name.startswith("inprocess_")]


def test_nothing_is_written_beside_one_file(tmp_path):
    """Bytecode would be written while a first call waits."""
    (tmp_path / "main.py").write_text("def handler(input): return 1\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import guest\n"
        "guest.import_entry(sys.argv[2], sys.argv[2] + '/main.py', False); print(sys.dont_write_bytecode)"
    )
    said = subprocess.run(
        [sys.executable, "-ISc", code, GUEST.parent, tmp_path], check=True, capture_output=True, text=True
    )

    assert said.stdout == "False\n"
    assert os.listdir(tmp_path) == ["main.py"]
