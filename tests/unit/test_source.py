"""Unit: the static check of a module's source, compared with the guest on the same source."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import types
import warnings
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.code import entry, source
from config.code.source import MAX_BYTES, check
from config.mistakes import ConfigError, Wrong
from config.modules.spec import spec_from_mapping
from protocol.authors.typed import plan
from tests.contract.test_guest_pythons import PYTHONS
from tests.modules_file import load_modules
from tests.programs import guest

RUNNING = sys.version_info[:2]
HIGHER, LOWER = (3, RUNNING[1] + 1), (3, RUNNING[1] - 1)


def findings(text: str, handler: str = "handler", target: tuple[int, int] | None = RUNNING) -> list[str]:
    return [finding.message for finding in check(dedent(text).encode(), handler, target, "the code").findings]


def guest_refuses(text: str, handler: str = "handler") -> str:
    """Return why the guest refuses a source, or why its first call cannot be made; nothing when it runs."""
    main = types.ModuleType("handled")
    sys.modules[main.__name__] = main
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(dedent(text).encode(), "code", "exec", dont_inherit=True), main.__dict__)
        module = guest.Module.__new__(guest.Module)
        module.main = main
        found = module._find({"handler": handler})
        if guest.wants_context(found) is None:
            plan(found)
        init = getattr(main, "init", None)
        if callable(init):
            begun = init()
            if inspect.iscoroutine(begun):
                begun.close()
    except Exception as problem:  # noqa: BLE001  (any exception of the module)
        return f"{type(problem).__name__}: {problem}"
    finally:
        del sys.modules[main.__name__]
    return ""


RUNS = [
    "def handler(input): ...",
    "def handler(input, context): ...",
    "async def handler(input, /): ...",
    "def handler(a, b, c=1): ...",
    "def handler(a=1, b=2, c=3): ...",
    "def handler(*args): ...",
    "def handler(): ...",
    "async def handler(**more): ...",
    "def handler(a, b, c): ...",
    "def handler(a, *, key): ...",
    "def handler(*args, **more): ...",
    "def handler(a, *args, key=1): ...",
    "def handler(a, *, key=1): yield a",
    "class handler:\n    def __init__(self, input): ...",
    "handler = lambda input: input",
    "handler: object = print",
    "if True:\n    def handler(input): ...",
    "try:\n    from nowhere import handler\nexcept ImportError:\n    def handler(input): ...",
    "try:\n    1 / 0\nexcept ZeroDivisionError:\n    from os.path import join as handler",
    "with open('/dev/null') as file:\n    handler = print",
    "for handler in (print,): pass",
    "while True:\n    handler = print\n    break",
    "import os\nhandler, other = print, 1",
    "other = handler = print",
    "[handler, *rest] = [print]",
    "(handler := print)",
    "other = [(handler := print) for _ in range(1)]",
    "def make(f=(handler := print)): ...",
    "globals()['handler'] = print",
    "exec('handler = print')",
    "import sys\nsys.modules[__name__].handler = print",
    "import sys\nsetattr(sys.modules[__name__], 'handler', print)",
    "def __getattr__(name):\n    return print",
    "def setup():\n    global handler\n    handler = print\nsetup()",
    "class Setup:\n    global handler\n    def handler(input): ...",
    "def decorate(f): return lambda input: f()\n@decorate\ndef handler(): ...",
    "def handler(): ...\nhandler = print",
    "def handler(): ...\nhandler.__code__ = (lambda input: 1).__code__",
    "def handler(a, b, c): ...\nhandler.__defaults__ = (1, 2)",
    "handler = None\nif handler is None:\n    handler = print",
    "def handler(input): ...\ninit = 3",
    "def handler(input): ...\ndef init(a=1, *b, c=2, **d): ...",
    "def handler(input): ...\nasync def init(): ...",
    "import functools\n@functools.wraps(print)\ndef handler(input): ...",
    "# -*- coding: latin-1 -*-\ndef handler(input): return '\N{LATIN SMALL LETTER E WITH ACUTE}'",
    "\ufeffdef handler(input): ...",
    "def handler(input):\n    return 1 is 1",
    "" if RUNNING < (3, 10) else "match print:\n    case handler: pass",
]
FAILS = {
    "def handlr(input): ...\ndef helper(): ...": "there is no function 'handler'; the code has handlr, helper;"
    " did you mean 'handlr'?",
    "def work(input): ...": "there is no function 'handler'; the code has work; write `handler: work` to call it",
    "x = 1": "there is no function 'handler'; the code has no functions; write `def handler(input):`",
    "": "there is no function 'handler'; the code has no functions; write `def handler(input):`",
    "class A:\n    def handler(input): ...": "there is no function 'handler'; the code has no functions; write"
    " `def handler(input):`",
    "def f():\n    def handler(input): ...\n    handler = 1": "there is no function 'handler'; the code has f; write"
    " `handler: f` to call it",
    "handler: object\ndef f(): ...\ndef _g(): ...\ndef h(): ...": "there is no function 'handler'; the code has f, h",
    "f = lambda: (lambda handler: handler)": "there is no function 'handler'; the code has no functions; write"
    " `def handler(input):`",
    "handler = 5": "'handler' is a value, not a function (line 1 of the code)",
    "\nhandler = other = []": "'handler' is a value, not a function (line 2 of the code)",
    "def handler(input): ...\ndef init(settings): ...": "`init` is called without arguments, but needs settings; add"
    " defaults, or rename the function (line 2 of the code)",
    "def handler(input): ...\ndef init(*, a, b=1): ...": "`init` is called without arguments, but needs a; add"
    " defaults, or rename the function (line 2 of the code)",
}


SYNC = ("def handler(input): ...", "def handler(input): yield 1", "x = 1\nif x:\n    def handler(input): ...")
ASYNC = (
    "async def handler(input): ...",
    "async def handler(input): yield 1",
    "def handler(input): ...\nhandler = print",
    "@wrapped\ndef handler(input): ...",
    "handler = make()",
)


@pytest.mark.parametrize("text", SYNC)
def test_a_handler_that_shares_its_worker_is_async(text):
    line = text.count("\n", 0, text.index("def ")) + 1
    (found,) = check(text.encode(), "handler", RUNNING, "the code", shared=True).findings

    assert (found.about, found.line, found.allowed) == ("calls", None, "1")
    assert found.message.endswith(f"write `async def` (line {line} of the code)")
    assert check(text.encode(), "handler", RUNNING, "the code").findings == []


@pytest.mark.parametrize("text", ASYNC)
def test_a_handler_that_may_be_async_passes(text):
    assert check(text.encode(), "handler", RUNNING, "the code", shared=True).findings == []


@pytest.mark.parametrize("text", RUNS)
def test_what_the_guest_runs_passes(text):
    assert text == "" or guest_refuses(text) == ""
    assert text == "" or findings(text) == []


@pytest.mark.parametrize(("text", "message"), FAILS.items())
def test_what_the_guest_refuses_is_told_before(text, message):
    assert guest_refuses(text) != ""
    assert findings(text) == [message]


PARAMETERS = st.tuples(
    *(st.integers(0, 3), st.integers(0, 3), st.booleans()),
    *(st.integers(0, 2), st.integers(0, 2), st.integers(0, 6), st.booleans()),
)


@given(PARAMETERS, st.sampled_from(["def", "async def"]))
def test_every_signature_is_one_of_a_handler(shape, define):
    only, plain, star, named, named_default, defaults, more = shape
    positional = [f"p{n}" for n in range(only + plain)]
    first = max(0, len(positional) - defaults)
    words = [name if at < first else f"{name}=1" for at, name in enumerate(positional)]
    if only:
        words.insert(only, "/")
    if star or named or named_default:
        words.append("*args" if star else "*")
    words += [f"k{n}" for n in range(named)] + [f"d{n}=1" for n in range(named_default)]
    words += ["**more"] * more
    text = f"{define} handler({', '.join(words)}): ..."

    assert findings(text) == []
    assert guest_refuses(text) == ""


# -- what does not compile -------------------------------------------------------------------------------------------


def test_the_place_of_a_mistake_is_told():
    (finding,) = check(b"x = 1\ny = (\n", "handler", RUNNING, "the code").findings

    assert finding.message == "does not compile: '(' was never closed (line 2 of the code, column 5: `y = (`)"
    assert (finding.about, finding.line) == ("code", 2)


def test_a_long_line_is_cut_and_marks_that_move_the_cursor_are_not_shown():
    (message,) = findings("x = '\x1b[31m' + " + "a " * 200)

    assert "\x1b" not in message
    assert message.endswith("...`)")
    assert len(message) < 250


@pytest.mark.parametrize(
    "text", ["return 1", "def f(a, a): ...", "x = 'a", "def f():\n\tx\n        y", "\0", "é".encode("latin-1")]
)
def test_all_that_compiling_refuses_is_told(text):
    data = text if isinstance(text, bytes) else text.encode()
    assert [finding.message[:17] for finding in check(data, "handler", RUNNING, "the code").findings] == [
        "does not compile:"
    ]


def test_grammar_of_a_later_python_is_not_judged():
    for target in (HIGHER, None):
        verdict = check(b"handler = input later", "handler", target, "the code")
        assert verdict == ([], False)


def test_layout_is_the_same_for_every_python():
    for target in (HIGHER, None):
        (message,) = findings("def handler(input):\nreturn 1", target=target)
        assert message.startswith("does not compile: expected an indented block")


def test_what_compiles_is_looked_at_for_a_later_python_too():
    assert findings("def handlr(input): ...", target=HIGHER) != []


def test_grammar_that_an_earlier_python_does_not_have_is_told():
    text = "def handler(input):\n    match input:\n        case 1: return 2\n"

    assert findings(text) == []
    (message,) = findings(text, target=(3, 9))
    assert "Pattern matching is only supported in Python 3.10 and greater" in message
    assert findings("with (open('x')):\n    handler = print", target=(3, 8)) == []


@pytest.mark.parametrize("text", ["-" * 20_000 + "1", "(" * 300 + ")" * 300])
def test_what_is_nested_too_deeply_is_told(text):
    (message,) = findings(text)
    assert message.startswith("does not compile: ")


def test_depth_is_that_of_the_source_and_not_of_the_caller():
    def deeper(levels):
        return deeper(levels - 1) if levels else findings("handler = " + " + ".join(["x"] * 1000))

    assert deeper(sys.getrecursionlimit() - len(inspect.stack()) - 100) == []
    assert findings("x = " + "-" * 20_000 + "1", target=LOWER) == []


def test_names_that_come_from_elsewhere_pass():
    assert findings("from os.path import *", "join") == []
    assert guest_refuses("from os.path import *", "join") == ""


def test_very_long_sources_are_not_looked_at():
    assert check(b"#" * (MAX_BYTES + 1), "handler", RUNNING, "the code") == ([], False)


@given(st.text(max_size=200), st.sampled_from(["handler", "", "x", "__class__"]))
def test_no_text_makes_it_fail(text, handler):
    for target in (RUNNING, LOWER, HIGHER, None):
        check(text.encode("utf-8", "surrogatepass"), handler, target, "the code")


@settings(max_examples=200)
@given(st.lists(st.sampled_from(RUNS + list(FAILS)), min_size=1, max_size=3))
def test_what_the_guest_runs_passes_in_any_order(parts):
    text = "\n".join(parts)
    if guest_refuses(text) == "":
        assert findings(text) == []


# -- under another interpreter ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", sorted(PYTHONS, key=lambda name: int(name.split(".")[1])))
def test_every_python_runs_it_and_finds_the_same(version, tmp_path):
    file = tmp_path / "handled.py"
    file.write_text("from . import x\ndef handlr(input): ...\ndef init(x): ...\n")
    command = [PYTHONS[version], "-I", "-S", "-W", "error", source.__file__, str(file), "handler", "main.py", "", ""]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)

    found = check(file.read_bytes(), "handler", RUNNING, "main.py", package=False).findings
    assert json.loads(done.stdout) == [list(finding) for finding in found]
    assert len(found) == 3


# -- modules ---------------------------------------------------------------------------------------------------------


def mistakes(folder: Path, text: str) -> list[str]:
    (folder / "modules.yaml").write_text(dedent(text))
    with pytest.raises(ConfigError) as caught:
        load_modules(folder / "modules.yaml")
    return [str(mistake).replace(f"{folder}/", "") for mistake in caught.value.mistakes]


def test_mistakes_in_code_have_the_line_of_the_file(tmp_path):
    text = """\
        modules:
          - name: a
            env: inline
            code: |
              import os

              def init(a):
                  return 1
              def handler(input): ...
          - name: b
            env: venv
            handler: wrk
            code: |
              def work(input): ...
        """

    assert mistakes(tmp_path, text) == [
        "modules.yaml:7: a.code: `init` is called without arguments, but needs a; add defaults, or rename the function"
        " (line 3 of the code)",
        "modules.yaml:12: b.handler: there is no function 'wrk'; the code has work; did you mean 'work'?",
    ]


def test_mistakes_in_files_have_the_line_of_those(tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "handler.py").write_text("\ndef init(a): ...\ndef handler(input): ...\n")
    (tmp_path / "one.py").write_text("def handler(input):\n    return (\n")
    text = (
        "modules: {a: {env: inline, path: job}, b: {env: inline, path: one.py},"
        " c: {env: inline, path: one.py, handler: 'x:f'}}"
    )

    assert mistakes(tmp_path, text) == [
        "modules.yaml:1: c.handler: none of x.py, x/__init__.py, x is in the folder",
        "job/handler.py:2: a.path: `init` is called without arguments, but needs a; add defaults, or rename the"
        " function (line 2 of handler.py)",
        "one.py:2: b.path: does not compile: '(' was never closed (line 2 of one.py, column 12: `return (`)",
    ]


@pytest.mark.parametrize(
    ("names", "handler", "found"),
    [
        (["main.py", "__init__.py", "handler.py"], "handler", "main.py"),
        (["__init__.py", "handler.py"], "handler", "__init__.py"),
        (["handler.py", "other.py"], "handler", "handler.py"),
        (["other.py", "main.py"], "other:run", "other.py"),
        (["jobs/report/__init__.py"], "jobs/report:run", "jobs/report/__init__.py"),
        (["jobs/report.py"], "jobs/report.py:run", "jobs/report.py"),
    ],
)
def test_the_file_of_the_handler_is_found(tmp_path, names, handler, found):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    assert entry.find_entry(names.__contains__, handler) == found
    assert entry.entry_of(tmp_path, handler) == tmp_path / found


def test_what_is_left_out_has_no_handler(tmp_path):
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.py").write_text("")

    with pytest.raises(Wrong, match=r"none of __pycache__/x\.py"):
        entry.entry_of(tmp_path, "__pycache__/x:run")


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ({"env": "inline"}, RUNNING),
        ({"env": "venv"}, RUNNING),
        ({"env": "venv", "python": "3.9.1"}, (3, 9)),
        ({"env": "conda"}, None),
        ({"env": "conda", "python": "3.12"}, (3, 12)),
        ({"env": "docker"}, None),
        ({"env": "docker", "python": "3.12"}, (3, 12)),
        ({"env": "docker", "python": "3.12", "image": "x"}, None),
        ({"env": "what"}, None),
        ({"env": "venv", "python": "what"}, None),
    ],
)
def test_the_python_of_a_module_is_known_where_its_fields_say_it(fields, target):
    assert entry.target_python(fields) == target


def test_files_of_others_are_told_within_their_folder(tmp_path):
    (tmp_path / "main.py").write_text("x = (")
    data = {"name": "m", "env": "inline", "path": "."}
    with pytest.raises(ConfigError) as caught:
        spec_from_mapping(data, base=tmp_path, allow_path=True)
    (mistake,) = caught.value.mistakes
    assert (mistake.file, mistake.line, mistake.field) == ("main.py", 1, "path")

    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "main.py").symlink_to(tmp_path / "main.py")
    with pytest.raises(ConfigError, match=r"path: 'main\.py' is outside of the folder of the module"):
        spec_from_mapping(data, base=inner, allow_path=True)


def test_a_source_that_cannot_be_read_is_reported(tmp_path):
    (tmp_path / "main.py").symlink_to("main.py")
    with pytest.raises(Wrong, match="cannot be read: Too many levels of symbolic links") as caught:
        entry.source_in(tmp_path / "main.py", "handler")
    assert caught.value.where == ("path",)


RELATIVE = {
    "the first": ("import os\nfrom . import helper\nfrom .other import x\n", "helper", 2),
    "of a name": ("from .wording import fill\n", "wording", 1),
    "of a folder above": ("from .. import above\n", "above", 1),
    "tried": ("try:\n    from . import helper\nexcept ImportError:\n    import helper\n", None, None),
    "in a function": ("def f():\n    from . import helper\n", None, None),
    "with a package of its own": ("__package__ = 'x'\nfrom . import helper\n", None, None),
    "absolute": ("from helper import x\n", None, None),
}


@pytest.mark.parametrize(("text", "name", "line"), RELATIVE.values(), ids=RELATIVE)
def test_a_relative_import_that_fails_says_what_to_write(text, name, line):
    source = (text + "def handler(input): return 1\n").encode()
    found = check(source, "handler", RUNNING, "main.py", package=False).findings

    assert check(source, "handler", RUNNING, "main.py").findings == []
    assert [(finding.about, finding.line) for finding in found] == ([] if name is None else [("code", line)])
    if name is not None:
        remedy = f"write `import {name}`, or add an `__init__.py` to the folder (line {line} of main.py)"
        assert remedy in found[0].message


@pytest.mark.parametrize(
    ("files", "handler", "package"),
    [
        ({"main.py": ""}, "handler", False),
        ({"main.py": "", "__init__.py": ""}, "handler", True),
        ({"__init__.py": ""}, "handler", True),
        ({"jobs/daily.py": ""}, "jobs/daily:run", True),
    ],
)
def test_which_sources_can_import_relatively(tmp_path, files, handler, package):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    assert entry.source_in(tmp_path, handler).package is package
    assert entry.source_in(tmp_path / next(iter(files)), "handler").package is False
