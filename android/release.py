"""The sample keyboard shrunk by R8 as a release would be: ``android/target/keyboard/release.apk``.

    python android/release.py          # after apk.py, whose compiled classes it takes; prints sizes as JSON

It is there to see that an app which takes the SDK needs no rules of its own: R8 gets the SDK's consumer rules, those
that libraries bring along, and what the manifest names. The build fails where something is gone that natives, the
system or Kotlin ask for by name. ONNX Runtime's classes are in it too, so that its rules are tried; ExecuTorch is that
of the debug build, and so is the key.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import apk
import desktop

from pfl_mobile.errors import ExportError

OUT = apk.OUT / "release"
LABEL = f"shrunk {apk.LABEL}, signed with a debug key"
#: Classes that native code makes, calls or registers methods of, by package.
NATIVE = ("org/pytorch/executorch/", "com/facebook/jni/", "ai/onnxruntime/")
#: Classes that the system makes by the name in the manifest.
NAMED = (
    "io/pflmobile/sdk/PersonalizationJobService",
    "io/pflmobile/sdk/RoundsJobService",
    "io/pflmobile/keyboard/KeyboardApp",
    "io/pflmobile/keyboard/KeyboardService",
    "io/pflmobile/keyboard/settings/SettingsActivity",
)
#: Fields and methods that natives ask for by name.
MEMBERS = (
    "mHybridData",
    "mNativePointer",
    "dtypeJniCode",
    "getRawDataBuffer",
    "nativeNewTensor",
    "executeNative",
)
#: Files that Kotlin reads of its class path.
FILES = ("io/pflmobile/core/text/unicode.json",)
#: What every app of Android keeps.
RULES = """
-keepattributes *Annotation*,Signature,InnerClasses,EnclosingMethod
-keepclasseswithmembernames,includedescriptorclasses class * { native <methods>; }
-keepclassmembers enum * { public static **[] values(); public static ** valueOf(java.lang.String); }
"""


def compiled() -> list[Path]:
    """What ``apk.py`` compiled and found, and the classes of both engines."""
    version = apk.properties()
    listing = apk.OUT / "classpath.txt"
    if not listing.is_file():
        raise ExportError("nothing is compiled yet", mend="run python android/apk.py first")
    found = [
        apk.KEYBOARD / "target/classes",
        *(Path(name) for name in listing.read_text().split(":") if name),
    ]
    engines = [
        desktop.TARGET
        / f"repository/org/pytorch/executorch-classes/{desktop.EXECUTORCH}/executorch-classes-{desktop.EXECUTORCH}.jar",
        apk.artifact(f"com.facebook.fbjni:fbjni-java-only:{version['fbjni.version']}"),
        apk.artifact(f"com.facebook.soloader:nativeloader:{version['nativeloader.version']}"),
        apk.artifact(f"com.microsoft.onnxruntime:onnxruntime:{version['onnxruntime.version']}"),
    ]
    there = {path.name for path in found}
    return found + [path for path in engines if path.name not in there]


def jars(classes: Iterable[Path]) -> list[Path]:
    """Jars of classes alone."""
    found = []
    for number, path in enumerate(classes):
        out = OUT / f"{number}.jar"
        with zipfile.ZipFile(out, "w") as made:
            if path.is_dir():
                for file in sorted(path.rglob("*.class")):
                    made.write(file, file.relative_to(path))
            else:
                with zipfile.ZipFile(path) as archive:
                    for name in archive.namelist():
                        if (
                            name.endswith(".class")
                            and not name.startswith("META-INF/")
                            and name != "module-info.class"
                        ):
                            made.writestr(name, archive.read(name))
        found.append(out)
    return found


def rules(classes: Iterable[Path]) -> list[Path]:
    """Files of rules: the SDK's, what the manifest names, those in jars, and those of every app."""
    found = [desktop.ANDROID / "sdk/consumer-rules.pro", apk.OUT / "manifest.pro"]
    for path in (path for path in classes if path.is_file()):
        with zipfile.ZipFile(path) as archive:
            files = [name for name in archive.namelist() if name.endswith(".pro")]
            # those for R8 of this version, else those for everybody, as Android's Gradle plugin takes them
            chosen = [
                name for name in files if re.match(r"META-INF/com\.android\.tools/r8(-from-[\d.]+)?/", name)
            ]
            for name in chosen or [name for name in files if name.startswith("META-INF/proguard/")]:
                out = OUT / f"{path.stem}-{Path(name).name}"
                out.write_bytes(archive.read(name))
                found.append(out)
    everywhere = OUT / "app.pro"
    everywhere.write_text(RULES)
    return [*found, everywhere]


def shrink(classes: list[Path]) -> list[Path]:
    """What R8 makes of them."""
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "dex").mkdir(parents=True)
    r8: list[str | Path] = [
        "java",
        "-Xmx1500m",
        "-cp",
        apk.artifact(apk.R8),
        "com.android.tools.r8.R8",
        "--release",
    ]
    r8 += [
        "--min-api",
        str(apk.MIN_SDK),
        "--lib",
        apk.platform(),
        "--lib",
        apk.java_home(),
        "--output",
        OUT / "dex",
    ]
    for file in rules(classes):
        r8 += ["--pg-conf", file]
    apk.run([*r8, *jars(classes)], mend="see what R8 says, and mend android/sdk/consumer-rules.pro")
    return sorted((OUT / "dex").glob("*.dex"))


def strings(dex: bytes) -> list[str]:
    """The table of strings of a file of Android's code: names of classes, fields and methods among them."""
    count, offset = struct.unpack_from("<II", dex, 0x38)
    found = []
    for (place,) in struct.iter_unpack("<I", dex[offset : offset + 4 * count]):
        start = place
        while dex[start] & 0x80:  # the length, seven bits a byte
            start += 1
        found.append(dex[start + 1 : dex.index(0, start + 1)].decode(errors="replace"))
    return found


def defined(dex: bytes) -> set[str]:
    """The classes that a file of Android's code defines, as in a jar: ``a/b/C``."""
    names = strings(dex)
    (types,) = struct.unpack_from("<I", dex, 0x44)
    count, offset = struct.unpack_from("<II", dex, 0x60)
    found = set()
    for number in range(count):
        (of_type,) = struct.unpack_from("<I", dex, offset + 32 * number)
        (of_name,) = struct.unpack_from("<I", dex, types + 4 * of_type)
        found.add(names[of_name].removeprefix("L").removesuffix(";"))
    return found


def lost(codes: Iterable[bytes], files: Iterable[str], given: Iterable[str]) -> list[str]:
    """What is gone that something asks for by name.

    Args:
        codes: files of Android's code.
        files: names of the other files in the APK.
        given: the classes that R8 was given, as in a jar.
    """
    classes: set[str] = set()
    names: set[str] = set()
    for code in codes:
        classes |= defined(code)
        names.update(strings(code))
    wanted = {*NAMED, *(name for name in given if name.startswith(NATIVE))}
    return sorted({*(wanted - classes), *(set(MEMBERS) - names), *(set(FILES) - set(files))})


def main() -> None:
    """Shrink, look, pack, and print sizes in bytes."""
    base = apk.resources()
    classes = compiled()
    codes = shrink(classes)
    app = [
        path for path in classes if not path.name.startswith("onnxruntime-")
    ]  # its natives are of desktops
    out = apk.OUT / "release.apk"
    verified = apk.sign(apk.packed(base, app, codes, LABEL), out)
    with zipfile.ZipFile(out) as archive:
        files = archive.namelist()
    given = [
        name.removesuffix(".class") for jar in OUT.glob("*.jar") for name in zipfile.ZipFile(jar).namelist()
    ]
    gone = lost([code.read_bytes() for code in codes], files, given)
    if gone:
        raise ExportError(
            f"R8 took away what is asked for by name: {', '.join(gone[:20])}",
            mend="add it to sdk/consumer-rules.pro",
        )
    found = apk.sizes(out, LABEL, verified)
    found["kept"] = (
        f"{sum(name.startswith(NATIVE) for name in given)} classes of engines, {len(NAMED)} named ones"
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
