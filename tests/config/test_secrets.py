"""What is a secret is hidden wherever a run writes; what only sounds like one is left alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import yaml
from command_line import optland

from optland.config import to_yaml
from optland.config.secrets import HIDDEN, is_secret, redact, redact_item, redact_text

SECRET = [
    "password",
    "db_password",
    "token",
    "hf_token",
    "WANDB_API_KEY",
    "apikey",
    "client_secret",
    "credentials",
]
SECRET += ["aws_secret_access_key", "access_key_id", "hub.auth_token", "private_key", "ssh-key"]
ORDINARY = ["lr", "key", "key_dim", "pad_token", "max_tokens", "tokenizer", "secretary", "passes", "keys"]


@pytest.mark.parametrize("key", SECRET)
def test_a_secret_is_known_by_its_key(key: str) -> None:
    assert is_secret(key)
    assert redact({key: "abc", "lr": 0.1}) == {key: HIDDEN, "lr": 0.1}
    assert redact_item(f"data.{key}=abc") == f"data.{key}={HIDDEN}"


@pytest.mark.parametrize("key", ORDINARY)
def test_what_only_sounds_like_it_is_left_alone(key: str) -> None:
    assert not is_secret(key)
    assert redact_item(f"{key}=abc") == f"{key}=abc"


def test_secrets_of_the_environment_and_in_urls_are_hidden_in_any_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SHORT_TOKEN", "cnn")  # would be found inside ordinary words
    text = "cnn: https://me:pa55@host/x?y refused 0123456789abcdef"
    assert redact_text(text) == f"cnn: https://{HIDDEN}@host/x?y refused {HIDDEN}"


@dataclass(frozen=True)
class Hub:
    token: str = ""
    urls: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    lr: float = 0.1
    password: str | None = None
    hub: Hub = field(default_factory=Hub)


def test_a_configuration_is_written_without_its_secrets() -> None:
    config = Config(password="abc", hub=Hub("def", ["http://me:ghi@host"]))
    text = to_yaml(config)
    assert not any(secret in text for secret in ("abc", "def", "ghi"))
    assert yaml.safe_load(to_yaml(Config())) == asdict(Config())


def test_no_file_of_a_real_run_holds_a_secret(tmp_path: Path) -> None:
    """Given through the environment, the configuration and the command line, and raised in an error."""
    secrets = {"WANDB_API_KEY": "feedfacefeedfacefeedfacefeedfacefeedface", "MY_TOKEN": "token-of-mine-123"}
    command = ["run", "landscape_train", "smoke", "epochs=1", "out=run"]
    command += [f"log.tags=[{secrets['MY_TOKEN']}]", "log.project=p-feedfacefeedfacefeedfacefeedfacefeedface"]
    run = optland(*command, cwd=tmp_path, env={"HOME": str(tmp_path / "home"), **secrets})
    assert run.returncode == 0, run.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in secrets.values()), path
    assert not any(secret in run.stdout + run.stderr for secret in secrets.values())
