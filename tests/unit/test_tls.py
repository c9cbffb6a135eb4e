"""Unit: a TLS context from certificate files, or the mistakes in them."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from config.mistakes import ConfigError
from config.settings import ServerSettings
from runner.serve.tls import server_context
from tests.certificates import Authority


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    authority = Authority(tmp_path)
    one, two = authority.sign("one"), authority.sign("two")
    secret = authority.sign("secret", password=b"x" * 8)
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    return {
        "certificate": one.certificate,
        "key": one.key,
        "other key": two.key,
        "locked certificate": secret.certificate,
        "locked key": secret.key,
        "authority": authority.file,
        "garbage": garbage,
        "absent": tmp_path / "absent.pem",
        "folder": tmp_path,
    }


def settings(files: dict[str, Path], certificate: str, key: str, authority: str | None = None) -> ServerSettings:
    return ServerSettings(
        tls_certificate_file=files[certificate],
        tls_key_file=files[key],
        tls_client_ca_file=None if authority is None else files[authority],
    )


def test_without_a_certificate_tls_is_off() -> None:
    assert server_context(ServerSettings(), ["h2"]) is None


def test_a_certificate_and_its_key(files: dict[str, Path]) -> None:
    context = server_context(settings(files, "certificate", "key"), ["h2"])

    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_NONE


def test_clients_must_present_a_certificate_of_the_authority(files: dict[str, Path]) -> None:
    context = server_context(settings(files, "certificate", "key", "authority"), ["h2"])

    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    ("given", "field", "word"),
    [
        (("certificate", "other key"), "tls_key_file", "not the key of"),
        (("garbage", "key"), "tls_certificate_file", "PEM"),
        (("certificate", "garbage"), "tls_certificate_file", "PEM"),
        (("locked certificate", "locked key"), "tls_certificate_file", "unencrypted"),
        (("absent", "key"), "tls_certificate_file", "No such file"),
        (("certificate", "absent"), "tls_key_file", "No such file"),
        (("certificate", "folder"), "tls_key_file", "directory"),
        (("certificate", "key", "garbage"), "tls_client_ca_file", "no certificate"),
        (("certificate", "key", "absent"), "tls_client_ca_file", "No such file"),
    ],
)
def test_unusable_files(files: dict[str, Path], given: Any, field: str, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        server_context(settings(files, *given), ["h2"])

    (mistake,) = caught.value.mistakes
    assert mistake.field == field
    assert word in mistake.message
