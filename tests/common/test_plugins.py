"""Entry points of other packages: found by group, never imported before they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import InputError
from common.plugins import installed, load

GROUP = "ahn_bench.tests"


def package(folder: Path, name: str, *lines: str) -> Path:
    information = folder / f"{name}-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\n")
    (information / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")
    return folder


def test_a_package_that_is_installed_later_is_found_and_not_imported(tmp_path, monkeypatch):
    assert installed(GROUP) == {}
    site = package(tmp_path / "site", "one", "thing = one_module:THING")
    (site / "one_module.py").write_text("THING = 3\n")
    monkeypatch.syspath_prepend(site)
    assert list(installed(GROUP)) == ["thing"]
    assert load(installed(GROUP)["thing"], "part") == 3


def test_two_packages_with_one_name_are_told(tmp_path, monkeypatch):
    for name in ("one", "two"):
        monkeypatch.syspath_prepend(package(tmp_path / name, name, f"thing = {name}:THING"))
    with pytest.raises(InputError, match="'thing' of ahn_bench.tests: is both .*uninstall one"):
        installed(GROUP)


@pytest.mark.parametrize(
    ("code", "said"), [("1 / 0", "ZeroDivisionError"), ("OTHER = 1", "AttributeError")]
)
def test_what_cannot_be_loaded_is_told(tmp_path, monkeypatch, code, said):
    name = f"odd_{said.lower()}"
    site = package(tmp_path / "site", name, f"thing = {name}:THING")
    (site / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(site)
    where = rf"{name}:THING .ahn_bench.tests."
    with pytest.raises(InputError, match=rf"{where} cannot be imported: .* .{said}"):
        load(installed(GROUP)["thing"], "part")
