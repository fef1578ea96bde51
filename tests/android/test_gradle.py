"""The Gradle project is not run where only Maven is had: its files are compared with Maven's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ANDROID = Path(__file__).parents[2] / "android"
SPACE = "{http://maven.apache.org/POM/4.0.0}"
CATALOG = tomllib.loads((ANDROID / "gradle/libs.versions.toml").read_text())
SETTINGS = (ANDROID / "settings.gradle.kts").read_text()
MODULES = re.findall(r'":(\w+)"', SETTINGS)
#: Modules that others take; the tests for phones are none.
SHIPPED = [name for name in MODULES if name != "e2e"]
#: What a pom calls a scope, by the configuration of Gradle.
SCOPES = {
    "api": "compile",
    "implementation": "compile",
    "compileOnly": "provided",
    "runtimeOnly": "runtime",
    "androidTestImplementation": "compile",
    "androidTestRuntimeOnly": "runtime",
}
#: What only one of the two needs: an app brings its engine and an Android build its platform; Maven's is of classes
#: alone, and names what AARs need.
MAVEN_ONLY = {
    ("provided", "org.robolectric:android-all"),
    ("runtime", "org.pytorch:executorch-classes"),
    ("runtime", "com.facebook.fbjni:fbjni-java-only"),
    ("runtime", "com.facebook.soloader:nativeloader"),
    ("runtime", "androidx.test.services:storage"),
    ("runtime", "androidx.tracing:tracing"),
    ("runtime", "androidx.annotation:annotation"),
}
GRADLE_ONLY = {
    ("runtime", "org.pytorch:executorch-android"),
    ("provided", "org.pytorch:executorch-android"),
    ("provided", "com.microsoft.onnxruntime:onnxruntime-android"),
}


def _pom(module: str = "") -> ElementTree.Element:
    return ElementTree.parse(ANDROID / module / "pom.xml").getroot()


def _text(node: ElementTree.Element, name: str) -> str | None:
    return node.findtext(f"{SPACE}{name}")


def _properties() -> dict[str, str]:
    return {node.tag.removeprefix(SPACE): node.text or "" for node in _pom().iterfind(f"{SPACE}properties/*")}


def _build(module: str) -> str:
    return (ANDROID / module / "build.gradle.kts").read_text()


def _libraries(module: str) -> set[tuple[str, str]]:
    """Scope and name of each dependency that Gradle has of other modules and of libraries."""
    found = set()
    for scope, alias, project in re.findall(
        rf"^ +({'|'.join(SCOPES)})\((?:libs\.([\w.]+)|project\(\":(\w+)\"\))\)",
        _build(module),
        re.M,
    ):
        name = (
            f"io.pflmobile:{project}" if project else CATALOG["libraries"][alias.replace(".", "-")]["module"]
        )
        found.add((SCOPES[scope], name))
    return found


def _dependencies(module: str) -> set[tuple[str, str]]:
    """The same of Maven, without those of tests. Gradle takes the variant for a JVM and an AAR by itself."""

    def name(node: ElementTree.Element) -> str:
        found = f"{_text(node, 'groupId')}:{(_text(node, 'artifactId') or '').removesuffix('-jvm')}"
        return found.removesuffix("-classes") if found.startswith("androidx.") else found

    return {
        (_text(node, "scope") or "compile", name(node))
        for node in _pom(module).iterfind(f"{SPACE}dependencies/{SPACE}dependency")
        if _text(node, "scope") != "test"
    }


def test_both_have_the_same_modules() -> None:
    assert [node.text for node in _pom().iterfind(f"{SPACE}modules/{SPACE}module")] == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_both_have_the_same_dependencies(module: str) -> None:
    assert _libraries(module) - GRADLE_ONLY == _dependencies(module) - MAVEN_ONLY


def test_both_have_the_same_versions() -> None:
    maven = _properties()
    versions: dict[str, str] = CATALOG["versions"]
    names = {name: "executorch" if name == "executorch-classes" else name for name in versions}
    shared = {name: version for name, version in versions.items() if name not in ("agp", "executorch")}
    assert shared == {
        name: maven[f"{names[name].replace('androidx-', 'androidx.')}.version"] for name in shared
    }


def test_the_app_brings_the_runtime_that_the_exporter_is_of() -> None:
    project = tomllib.loads((ANDROID.parent / "pyproject.toml").read_text())["project"]
    (low, high) = re.findall(
        r"executorch>=([\d.]+),<([\d.]+)", str(project["optional-dependencies"]["android"])
    )[0]
    found = CATALOG["versions"]["executorch"]

    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    assert numbers(low) <= numbers(found) < numbers(high)


def test_every_entry_of_the_catalog_is_used_and_has_a_version() -> None:
    built = "".join(_build(module) for module in ["", *MODULES])
    for kind, prefix in {"libraries": "libs.", "plugins": "libs.plugins."}.items():
        entries: dict[str, dict[str, Any]] = CATALOG[kind]
        for alias, entry in entries.items():
            assert entry["version"]["ref"] in CATALOG["versions"], alias
            assert f"({prefix}{alias.replace('-', '.')})" in built, f"{alias} is used by no build file"
    for alias in re.findall(r"libs\.plugins\.([\w.]+)", built):
        assert alias.replace(".", "-") in CATALOG["plugins"]


@pytest.mark.parametrize("module", SHIPPED)
def test_both_build_the_same_folders(module: str) -> None:
    build = _build(module)
    # none is named, so it is src/main/kotlin: Maven's parent names it
    assert "kotlin.srcDir" not in build
    assert "setSrcDirs" not in build
    assert _pom().findtext(f"{SPACE}build/{SPACE}sourceDirectory") == "src/main/kotlin"
    assert any((ANDROID / module / "src/main/kotlin").rglob("*.kt"))
    assert not (ANDROID / module / "src/main/java").exists()


def test_the_tests_for_phones_are_the_same_folders() -> None:
    (folders,) = re.findall(r"kotlin\.srcDirs\((.*)\)", _build("e2e"))
    named = {"src/androidTest/kotlin", *re.findall(r'"([^"]+)"', folders)}
    compiled = next(
        node for node in _pom("e2e").iter(f"{SPACE}execution") if node.findtext(f"{SPACE}id") == "compile"
    )
    maven = {
        (node.text or "").removeprefix("${project.basedir}/") for node in compiled.iter(f"{SPACE}sourceDir")
    }
    assert named == maven
    for folder in named:
        assert any((ANDROID / "e2e" / folder).rglob("*.kt")), folder
    # what the JVM carries out is what phones carry out
    assert "/e2e/src/scenarios/kotlin" in (ANDROID / "core/pom.xml").read_text()
    assert not (ANDROID / "e2e/src/main").exists()


def test_both_have_the_same_runner_and_the_assets_of_the_script() -> None:
    source = (ANDROID / "instrumented.py").read_text()
    (runner,) = re.findall(r'RUNNER = "(.+)"', source)
    assert f'testInstrumentationRunner = "{runner}"' in _build("e2e")
    assert 'assets.srcDirs("../target/e2e/assets")' in _build("e2e")
    (package,) = re.findall(r'^PACKAGE = "(.+)"', source, re.M)
    assert f'namespace = "{package.removesuffix(".test")}"' in _build("e2e")


@pytest.mark.parametrize("module", ["core", "sdk"])
def test_what_is_published_says_the_same_of_itself(module: str) -> None:
    build = _build(module)
    for name in ("name", "description"):
        (told,) = re.findall(rf'{name}\.set\(\s*"([^"]+)",?\s*\)', build[build.index("pom {") :])
        assert told == _text(_pom(module), name)
    assert "withSourcesJar()" in build
    # with their sources
    plugins = [
        _text(node, "artifactId")
        for node in _pom(module).iterfind(f"{SPACE}build/{SPACE}plugins/{SPACE}plugin")
    ]
    assert "maven-source-plugin" in plugins


def test_the_licence_is_that_of_the_project() -> None:
    # none was chosen until now
    project = tomllib.loads((ANDROID.parent / "pyproject.toml").read_text())["project"]
    named = [_pom().findtext(f"{SPACE}licenses/{SPACE}license/{SPACE}name")]
    named += re.findall(r"license \{ name\.set\(\"(.+)\"\)", _build("core") + _build("sdk")) or [None]
    assert set(named) == {project.get("license")}


def test_an_app_has_the_libraries_that_the_public_api_names() -> None:
    public = (ANDROID / "core/api/core.api").read_text()
    assert "okhttp3/OkHttpClient" in public
    assert "api(libs.okhttp)" in _build("core")
    assert ("compile", "com.squareup.okhttp3:okhttp") in _dependencies("core")


def test_the_readme_names_what_is_built() -> None:
    readme = (ANDROID / "README.md").read_text()
    versions = CATALOG["versions"]
    assert f'"io.pflmobile:sdk:{_text(_pom(), "version")}"' in readme
    assert f'"org.pytorch:executorch-android:{versions["executorch"]}"' in readme
    assert f'"com.microsoft.onnxruntime:onnxruntime-android:{versions["onnxruntime"]}"' in readme
    (least,) = re.findall(r"minSdk = (\d+)", _build("sdk"))
    assert f"minSdk {least} " in readme


def test_both_have_documentation_of_what_is_public() -> None:
    for module in ("core", "sdk"):
        assert "reportUndocumented.set(true)" in _build(module)
    (plugin,) = (
        node for node in _pom().iter(f"{SPACE}plugin") if _text(node, "artifactId") == "dokka-maven-plugin"
    )
    assert plugin.findtext(f"{SPACE}configuration/{SPACE}reportUndocumented") == "true"


def test_both_pack_the_table_of_code_points() -> None:
    assert "../../pfl_mobile/text/unicode.json" in _build("core")
    assert "unicode/io/pflmobile/core/text" in _build("core")
    (target,) = _pom("core").iter(f"{SPACE}targetPath")
    assert target.text == "io/pflmobile/core/text"


@pytest.mark.parametrize(
    "file", ["settings.gradle.kts", "build.gradle.kts", *(f"{m}/build.gradle.kts" for m in MODULES)]
)
def test_brackets_and_quotes_close(file: str) -> None:
    text = re.sub(r"//[^\n]*", "", (ANDROID / file).read_text())
    bare = re.sub(r'"[^"\n]*"', "", text)
    assert '"' not in bare
    open_brackets: list[str] = []
    for bracket in re.findall(r"[(){}\[\]]", bare):
        if bracket in "({[":
            open_brackets.append(bracket)
        else:
            assert open_brackets.pop() + bracket in ("()", "{}", "[]"), file
    assert not open_brackets


def test_the_app_is_for_the_same_phones_as_the_debug_build() -> None:
    source = (ANDROID / "apk.py").read_text()
    low, target = re.findall(r"MIN_SDK, TARGET_SDK = (\d+), (\d+)", source)[0]
    build = _build("keyboard")
    assert f"minSdk = {low}\n" in build
    assert f"targetSdk = {target}\n" in build
    for processor in re.findall(r'"([\w-]+)": "[0-9a-f]{64}"', source):
        assert f'"{processor}"' in build
    assert re.search(r'namespace = "io.pflmobile.keyboard"', build)
