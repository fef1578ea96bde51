"""What packs the tests that phones run, as far as it goes without its tools."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from tests.android.scripts import ANDROID, loaded

SPACE = "{http://schemas.android.com/apk/res/android}"


@pytest.fixture(scope="module")
def instrumented() -> Iterator[ModuleType]:
    with loaded("instrumented") as module:
        yield module


def test_the_app_tests_itself_and_has_the_network(instrumented: ModuleType) -> None:
    root = ElementTree.fromstring(instrumented.manifest())
    assert root.get("package") == instrumented.PACKAGE
    (runner,) = root.iter("instrumentation")
    assert runner.get(f"{SPACE}targetPackage") == instrumented.PACKAGE
    assert runner.get(f"{SPACE}name") == instrumented.RUNNER
    permissions = {node.get(f"{SPACE}name") for node in root.iter("uses-permission")}
    assert "android.permission.INTERNET" in permissions
    names = {node.get(f"{SPACE}name") for node in root.iter() if node.tag in ("activity", "service")}
    jobs = {"io.pflmobile.sdk.PersonalizationJobService", "io.pflmobile.sdk.RoundsJobService"}
    assert names == {"io.pflmobile.e2e.TypingActivity", *jobs}
    # it may see the keyboard, which is another app
    (seen,) = root.iterfind("queries/package")
    assert seen.get(f"{SPACE}name") == "io.pflmobile.keyboard"


def test_libraries_are_those_of_the_build(instrumented: ModuleType) -> None:
    pom = (ANDROID / "e2e/pom.xml").read_text()
    versions = instrumented.apk.properties()
    for name, version in instrumented.AARS.items():
        artifact = name.split(":")[1]
        assert version in versions
        assert f"<artifactId>{artifact}-classes</artifactId>\n      <version>${{{version}}}</version>" in pom


def test_an_update_has_another_bundle_and_no_old_signature(
    instrumented: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, newer, out = tmp_path / "a.apk", tmp_path / "newer.pflb", tmp_path / "b.apk"
    newer.write_bytes(b"newer")
    with zipfile.ZipFile(first, "w", zipfile.ZIP_DEFLATED) as apk:
        apk.writestr("classes.dex", b"code")
        apk.writestr(instrumented.BUNDLE, b"older")
        apk.writestr("META-INF/DEBUG.RSA", b"signature")
        apk.writestr(zipfile.ZipInfo("lib/x86_64/a.so"), b"stored")
    # signing needs Java
    monkeypatch.setattr(
        instrumented.apk, "sign", lambda unsigned, signed: signed.write_bytes(unsigned.read_bytes())
    )
    instrumented.with_bundle(first, newer, out)
    with zipfile.ZipFile(out) as apk:
        assert sorted(apk.namelist()) == [instrumented.BUNDLE, "classes.dex", "lib/x86_64/a.so"]
        assert apk.read(instrumented.BUNDLE) == b"newer"
        for stored in (instrumented.BUNDLE, "lib/x86_64/a.so"):
            assert apk.getinfo(stored).compress_type == zipfile.ZIP_STORED
        assert apk.read("classes.dex") == b"code"


def test_what_the_user_of_the_keyboard_looks_for_is_on_its_screen() -> None:
    code = (ANDROID / "e2e/src/androidTest/kotlin/io/pflmobile/e2e/KeyboardUser.kt").read_text()
    values = ElementTree.parse(ANDROID / "keyboard/src/main/res/values/strings.xml").getroot()
    strings = [re.sub(r"%\d\$[sd]", "\0", node.text or "") for node in values]
    looked_for = re.findall(r'By\.(?:pkg\(KEYBOARD\)\.)?(?:text|desc)\("([^"]+)"\)', code)
    looked_for += re.findall(r'-> "([A-Z][^"]+)"', code)
    looked_for += re.findall(r'key\("([^"]+)"\)', code)
    looked_for += re.findall(r'desc\("(suggestion )', code)
    assert len(looked_for) > 8, looked_for
    for text in looked_for:
        begins = re.sub(r"\$\{.*\}", "\0", text)
        assert any(string.startswith(begins) for string in strings), f"no text of the keyboard is '{text}'"
    (heading,) = re.findall(r'Pattern\.compile\("(Sentences.*)"\)', code)
    assert any(re.fullmatch(heading.replace("\\\\", "\\"), s.replace("\0", "16")) for s in strings)
