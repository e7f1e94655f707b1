from __future__ import annotations

from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli.settings import Contexts, Settings, config_file, load, save

REGION = Settings(("10.0.0.1:7000", "10.0.0.2:7000"), "/a.crt", "/m.crt", "/m.key")


def test_nothing_said_means_the_development_plane() -> None:
    assert Settings().checked() == Settings(("127.0.0.1:7000",), insecure=True)


def test_what_is_given_completes_the_context() -> None:
    assert Settings(key="/other.key").or_else(REGION) == Settings(REGION.addresses, "/a.crt", "/m.crt", "/other.key")


def test_insecure_takes_no_certificates_of_a_context() -> None:
    given_ = Settings(("127.0.0.1:1",), insecure=True)
    assert given_.or_else(REGION) == given_


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(authority="/a.crt"), "no address"),
        (Settings(("h:1",)), "no authority and no certificate and no key"),
        (Settings(("h:1",), "/nowhere/a", "/nowhere/b", "/nowhere/c"), "/nowhere/a is not a file"),
    ],
)
def test_what_is_missing_is_named(settings: Settings, said: str) -> None:
    with pytest.raises(click.UsageError, match=said):
        settings.checked()


def test_home_of_the_file() -> None:
    assert config_file({"XDG_CONFIG_HOME": "/x"}) == Path("/x/controlplane/config.toml")
    assert config_file({}) == Path("~/.config/controlplane/config.toml").expanduser()


def test_no_file_is_an_empty_one(tmp_path: Path) -> None:
    assert load(tmp_path / "none.toml") == Contexts(None, {})


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
paths = st.text(st.sampled_from("abc/é \"'\\"), max_size=10).map(lambda text: f"/{text.strip('/')}")


@given(st.dictionaries(names, st.builds(Settings, st.tuples(names), paths, paths, paths, st.booleans()), max_size=4))
def test_what_is_saved_is_read_again(tmp_path_factory: pytest.TempPathFactory, table: dict[str, Settings]) -> None:
    file = tmp_path_factory.getbasetemp() / "saved" / "config.toml"
    contexts = Contexts(next(iter(table), None), table)
    save(file, contexts)
    again = load(file)
    assert again.current == contexts.current
    assert {name: each.addresses for name, each in again.table.items()} == {n: e.addresses for n, e in table.items()}
    assert {n: Path(e.key) for n, e in again.table.items()} == {n: Path(e.key) for n, e in table.items()}


def test_the_file_is_its_owners(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    save(file, Contexts("a", {"a": REGION}))
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text",
    ["current = 3", "[context.a]\naddress = []", "[context.a]\naddresses = [1]", "a = = b", "[other]", "context = 3"],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(click.UsageError, match=r"config\.toml"):
        load(file)


def test_relative_paths_are_beside_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[context.a]\naddresses = ["h:1"]\nkey = "m.key"')
    assert load(file).table["a"].key == str(tmp_path / "m.key")


def test_an_unknown_context_names_the_known() -> None:
    with pytest.raises(click.UsageError, match="known: west"):
        Contexts(None, {"west": REGION}).named("east")
