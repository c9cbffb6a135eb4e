"""Unit: settings of clients: address, token and certificates; options before variables, mistakes with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.client import Address, read_address
from config.load import load_client_settings, load_settings
from config.mistakes import ConfigError, Wrong

ADDRESSES = {
    "http://127.0.0.1:8000": (Address("http", "127.0.0.1", 8000), "http://127.0.0.1:8000"),
    "https://runner.example": (Address("https", "runner.example", 443), "https://runner.example"),
    "wss://runner.example:8443/": (Address("https", "runner.example", 8443), "https://runner.example:8443"),
    "ws://[::1]:80/a/b/": (Address("http", "::1", 80, "/a/b"), "http://[::1]/a/b"),
    " http://LOCALHOST:1\n": (Address("http", "localhost", 1), "http://localhost:1"),
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_what_a_url_says(text):
    address, shown = ADDRESSES[text]

    assert read_address(text) == address
    assert str(address) == shown


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("127.0.0.1:8000", "is not the URL of a runner; write http://HOST:PORT"),
        ("localhost:8000", "is not the URL of a runner; write http://HOST:PORT"),
        ("ftp://host", "is not the URL of a runner"),
        ("http://", "is not the URL of a runner"),
        ("http://host:99999", "is not a URL: Port out of range"),
        ("http://[::1", "is not a URL: "),
        ("http://hôst", "is not the URL of a runner"),
        ("http://host/a b", "is not the URL of a runner"),
        ("http://me:secret@host", "has a user name or password"),
        ("http://host/?a=1", "has a query or a fragment"),
    ],
)
def test_what_is_no_url(text, says):
    with pytest.raises(Wrong) as caught:
        read_address(text)

    assert says in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("runner.example", False),
        ("localhost.example", False),
        ("::", False),
    ],
)
def test_loopback_is_told_without_asking_for_names(host, is_loopback):
    assert Address("http", host, 80).loopback is is_loopback


def test_options_come_before_variables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environ = {"OPERATO_URL": "http://a:1", "OPERATO_TOKEN": "from-variable\n", "OPERATO_CA": "ca.pem"}

    of_variables = load_client_settings({"url": None, "token": None, "ca": None}, environ)
    of_options = load_client_settings({"url": "http://b:2", "token": "from-option", "ca": "/other.pem"}, environ)
    of_nobody = load_client_settings({}, {"OPERATO_URL": ""})

    assert (str(of_variables.address), of_variables.token) == ("http://a:1", "from-variable")
    assert of_variables.ca_file == tmp_path / "ca.pem"
    assert (str(of_options.address), of_options.token) == ("http://b:2", "from-option")
    assert of_options.ca_file == Path("/other.pem")
    assert (str(of_nobody.address), of_nobody.token, of_nobody.ca_file) == ("http://127.0.0.1:8000", None, None)
    assert "from-variable" not in repr(of_variables)


def test_a_certificate_comes_with_its_key_or_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    of_variables = load_client_settings({}, {"OPERATO_CERT": "mine.pem", "OPERATO_CERT_KEY": "mine.key"})
    of_options = load_client_settings({"cert": "/both.pem", "cert_key": None}, {})
    with pytest.raises(ConfigError) as caught:
        load_client_settings({"cert_key": "mine.key"}, {})

    assert (of_variables.cert_file, of_variables.key_file) == (tmp_path / "mine.pem", tmp_path / "mine.key")
    assert (of_options.cert_file, of_options.key_file) == (Path("/both.pem"), None)
    assert [str(mistake) for mistake in caught.value.mistakes] == [
        "--cert-key: needs the certificate too: --cert or OPERATO_CERT"
    ]


def test_mistakes_are_told_together_and_show_no_token():
    with pytest.raises(ConfigError) as caught:
        load_client_settings({"url": "nowhere"}, {"OPERATO_TOKEN": "a b", "OPERATO_CA": " "})

    fields = {mistake.field: mistake.message for mistake in caught.value.mistakes}
    assert set(fields) == {"--url", "OPERATO_TOKEN", "OPERATO_CA"}
    assert fields["OPERATO_TOKEN"] == "is not a token; use the output of `operato-runner token`"


def test_a_variable_that_nothing_knows_is_a_mistake_here_too():
    with pytest.raises(ConfigError) as caught:
        load_client_settings({}, {"OPERATO_TOKN": "x", "OPERATO_REST_PORT": "1", "OPERATO_SECRET_A": "b"})

    assert [str(mistake) for mistake in caught.value.mistakes] == [
        "OPERATO_TOKN: unknown setting; did you mean 'OPERATO_TOKEN'?"
    ]


def test_a_server_takes_no_offence_at_the_variables_of_clients(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("modules.yaml").write_text("modules: []\n")
    environ = {"OPERATO_URL": "no url", "OPERATO_TOKEN": "a b", "OPERATO_CA": "x"}

    assert load_settings({}, environ).settings.server.rest_port == 8000
