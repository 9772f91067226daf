"""vagoth.toml: found, read, refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from vagoth.config import load_config
from vagoth.errors import ConfigError, InvalidInput


def write(text: str, name: str = "vagoth.toml") -> Path:
    path = Path(name).absolute()
    path.write_text(text)
    return path


def test_without_a_file_the_defaults_hold(own_folders: Path) -> None:
    config = load_config()
    assert config.path is None
    assert config.store == own_folders / "data/vagoth/store.json"
    assert config.settings.hosts.connect_timeout_s == 10


def test_the_file_beside_us_is_found_and_its_store_is_relative_to_it() -> None:
    path = write('[store]\npath = "kept/nodes.json"\n')
    config = load_config()
    assert config.path == path
    assert config.store == path.parent / "kept/nodes.json"


def test_the_environment_goes_before_the_file_beside_us(monkeypatch: pytest.MonkeyPatch) -> None:
    write('[store]\npath = "here.json"\n')
    other = write('[store]\npath = "there.json"\n', "other.toml")
    monkeypatch.setenv("VAGOTH_CONFIG", str(other))
    assert load_config().store.name == "there.json"


def test_a_store_that_is_named_goes_before_all(tmp_path: Path) -> None:
    write('[store]\npath = "here.json"\n')
    assert load_config(store=tmp_path / "mine.json", sim=2).store == tmp_path / "mine.json"


def test_simulated_hosts_have_a_store_of_their_own() -> None:
    write('[store]\npath = "here.json"\n')
    assert load_config(sim=3).store != load_config().store
    assert load_config(sim=3).store != load_config(sim=4).store


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[store]\npath = \n", 2, "not TOML"),
        ("[hosts]\n\nconect_timeout_s = 3\n", 3, "did you mean connect_timeout_s?"),
        ("[store]\npath = 'x'\n[host]\n", 3, "did you mean hosts?"),
        ("hosts.jobs_per_host = 0\n", 1, ">= 1"),
        ("[hosts]\nconnect_timeout_s = 'soon'\n", 2, "a number"),
        ("[nodes]\nrack = 3\n", 2, "text"),
        ("[ssh]\nconfig = 'nowhere'\n", 2, "there is no file nowhere"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, line: int, says: str) -> None:
    write(text)
    with pytest.raises(ConfigError) as caught:
        load_config()
    assert caught.value.line == line
    assert says in str(caught.value)
    assert f"vagoth.toml, line {line}" in str(caught.value)


def test_a_file_that_was_named_must_be_there() -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config("nowhere.toml")


def test_a_file_that_is_no_text_is_refused() -> None:
    Path("vagoth.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config()


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_the_number_of_simulated_hosts_has_bounds(count: int) -> None:
    with pytest.raises(InvalidInput, match="1 to 1000"):
        load_config(sim=count)
