"""conf/, models/ and pipelines/ are found by their marker, never by their name alone."""

import pytest

from mlperf_opt import resources
from mlperf_opt.errors import ConfigError

TEXT = "resource folder of mlperf_opt\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package folder in an empty site-packages."""
    folder = tmp_path / "site-packages" / "mlperf_opt"
    folder.mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", folder)
    return folder


def _folder(path, marker=TEXT):
    path.mkdir(parents=True)
    if marker is not None:
        (path / ".mlperf_opt").write_text(marker, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["conf", "models", "pipelines"])
def test_a_wheel_carries_the_folder_inside(package, name):
    mine = _folder(package / name)
    assert resources.resource_dir(name) == mine


def test_a_checkout_has_it_beside_the_package(package):
    mine = _folder(package.parent / "conf")
    assert resources.resource_dir("conf") == mine


def test_inside_goes_before_beside(package):
    inside, _ = _folder(package / "conf"), _folder(package.parent / "conf")
    assert resources.resource_dir("conf") == inside


@pytest.mark.parametrize("marker", [None, "", "resource folder of another\n", TEXT + "and more"])
def test_a_foreign_folder_of_that_name_is_never_taken(package, marker):
    _folder(package.parent / "conf", marker)
    with pytest.raises(ConfigError, match="the installation is incomplete: no folder 'conf'"):
        resources.resource_dir("conf")


def test_a_foreign_folder_inside_does_not_hide_ours(package):
    _folder(package / "models", None)
    mine = _folder(package.parent / "models")
    assert resources.resource_dir("models") == mine


def test_a_marker_that_is_a_folder_does_not_count(package):
    (package.parent / "conf" / ".mlperf_opt").mkdir(parents=True)
    with pytest.raises(ConfigError, match="incomplete"):
        resources.resource_dir("conf")


def test_the_working_directory_is_never_read(package, tmp_path, monkeypatch):
    _folder(tmp_path / "work" / "conf")
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ConfigError, match="install mlperf_opt again"):
        resources.resource_dir("conf")


@pytest.mark.parametrize("name", ["conf", "models", "pipelines"])
def test_this_installation_is_complete(name):
    assert (resources.resource_dir(name) / ".mlperf_opt").is_file()
