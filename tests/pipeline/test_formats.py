"""Files and folders of other versions: older ones are read, newer ones refused in a sentence."""

import logging
from pathlib import Path

import pytest

from espalier import Config, ConfigError
from espalier.pipeline import store
from espalier.pipeline.formats import PRESENT, migrate

OLDEST = Path(__file__).with_name("format-1.yaml")


def test_every_key_of_format_1_is_read(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = Config.load(OLDEST)
    assert (config.version, config.retries) == (PRESENT, 3)
    (said,) = caplog.messages
    assert said == (
        f"{OLDEST}: written for an older Espalier: cluster.retries is now retries: 3, and holds "
        "for local runs too."
    )
    assert Config.load(OLDEST, ["cluster.retries=5"]).retries == 5


def test_what_is_written_needs_no_migration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "now.yaml").write_text(Config.load(OLDEST).to_yaml())
    caplog.clear()
    assert Config.load(tmp_path / "now.yaml") == Config.load(OLDEST)
    assert not [line for line in caplog.messages if "now.yaml" in line]


def test_a_pushed_version_of_an_older_format_is_read_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra" / "config.yaml").write_bytes(OLDEST.read_bytes())
    config = Config.of_version(tmp_path)
    assert config is not None and config.retries == 3
    assert not caplog.messages


def test_a_fault_in_a_moved_key_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(OLDEST.read_text().replace("retries: 3", "retries: -3"))
    with pytest.raises(ConfigError, match=r"job\.yaml:\d+: retries: .* found -3"):
        Config.load(tmp_path / "job.yaml")


@pytest.mark.parametrize("tree", [{"cluster": {"image": "x"}}, {"cluster": None}, {}])
def test_what_is_the_same_in_both_formats_changes_nothing(tree: dict[str, object]) -> None:
    assert migrate(dict(tree, version=1), "job.yaml") == []
    assert migrate({"cluster": {"retries": 1}, "version": PRESENT}, "job.yaml") == []


def test_a_folder_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    with store.alone(tmp_path):
        pass
    store.check_format(tmp_path)
    (tmp_path / "format").write_text("99\n")
    for look in (store.check_format, store.alone, store.Store):
        with pytest.raises(ConfigError, match="a newer Espalier has written here .* 99"):
            look(tmp_path)
    assert (tmp_path / "format").read_text() == "99\n"
    assert not store.database(tmp_path).exists()
