"""What packs the sample keyboard, as far as it goes without its tools."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from tests.android.scripts import ANDROID, loaded

RES = ANDROID / "keyboard/src/main/res"


@pytest.fixture(scope="module")
def apk() -> Iterator[ModuleType]:
    with loaded("apk") as module:
        yield module


def test_names_of_resources_become_kotlin(apk: ModuleType) -> None:
    made = apk.symbols(
        "int string app 0x7f040000\nint string yes 0x7f040001\nint xml method 0x7f050000\nint[] styleable A { }\n"
    )
    assert (
        "object string {\n        const val app: Int = 0x7f040000\n        const val yes: Int = 0x7f040001\n    }"
        in made
    )
    assert "object xml" in made
    assert "styleable" not in made


@pytest.mark.parametrize(
    ("name", "is_data"),
    {
        "io/pflmobile/core/text/unicode.json": True,
        "META-INF/services/kotlinx.coroutines.internal.MainDispatcherFactory": True,
        "META-INF/MANIFEST.MF": False,
        "META-INF/versions/9/module-info.class": False,
        "a/B.class": False,
        "a/": False,
    }.items(),
)
def test_code_and_notices_are_no_data(apk: ModuleType, name: str, is_data: bool) -> None:
    assert apk.is_data(name) is is_data


def test_data_is_found_in_folders_and_jars(apk: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "classes"
    (folder / "a").mkdir(parents=True)
    (folder / "a/table.json").write_text("{}")
    (folder / "a/B.class").write_bytes(b"")
    jar = tmp_path / "a.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("a/table.json", "{}")
        archive.writestr("a/B.class", "")
    for place in (folder, jar):
        assert list(apk.data_files(place)) == [("a/table.json", b"{}")]


def test_versions_are_maven_s(apk: ModuleType) -> None:
    assert apk.properties()["robolectric.version"] == "4.17"


def test_day_and_night_have_the_same_colors() -> None:
    day, night = (
        {node.get("name") for node in ElementTree.parse(RES / folder / "colors.xml").getroot()}
        for folder in ("values", "values-night")
    )
    assert day == night


def test_every_text_and_color_that_code_names_is_there_and_used() -> None:
    code = "".join(path.read_text() for path in (ANDROID / "keyboard/src/main").rglob("*.kt"))
    xml = "".join(path.read_text() for path in (ANDROID / "keyboard/src/main").rglob("*.xml"))
    for file in ("strings.xml", "colors.xml"):
        for node in ElementTree.parse(RES / "values" / file).getroot():
            name, kind = node.get("name"), node.tag
            assert f"R.{kind}.{name}" in code or f"@{kind}/{name}" in xml, f"{name} is not used"


def test_the_manifest_takes_in_what_the_library_needs(apk: ModuleType) -> None:
    manifests = [ANDROID / name / "src/main/AndroidManifest.xml" for name in apk.MODULES]
    root = ElementTree.fromstring(apk.merged(*manifests))
    name = "{http://schemas.android.com/apk/res/android}name"
    assert root.get("package") == apk.PACKAGE
    found = {node.get(name) for node in root.iter("service")}
    jobs = {"io.pflmobile.sdk.PersonalizationJobService", "io.pflmobile.sdk.RoundsJobService"}
    assert found == {"io.pflmobile.keyboard.KeyboardService", *jobs}
    permissions = {node.get(name) for node in root.iter("uses-permission")}
    assert "android.permission.RECEIVE_BOOT_COMPLETED" in permissions
    assert "android.permission.INTERNET" in permissions


def test_the_library_alone_asks_for_no_network_and_a_build_alone_for_no_server() -> None:
    assert "permission.INTERNET" not in (ANDROID / "sdk/src/main/AndroidManifest.xml").read_text()
    strings = {
        node.get("name"): node.text for node in ElementTree.parse(RES / "values/strings.xml").getroot()
    }
    assert not strings["rounds_server"]
