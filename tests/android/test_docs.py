"""What Dokka complains of is told from what nobody can mend."""

from __future__ import annotations

from tests.android.scripts import loaded

SAID = """[INFO] Undocumented is what has no words
[WARNING] Undocumented: io.pflmobile.core.bundle/Role/values/#/ (JVM)
[WARNING] Undocumented: io.pflmobile.core.bundle/Role/valueOf/#kotlin.String/ (JVM)
[WARNING] Undocumented: io.pflmobile.core.bundle/Role/entries/#/ (JVM)
[WARNING] Undocumented: io.pflmobile.core.bundle/Manifest/values/ (JVM)
[WARNING] Undocumented: io.pflmobile.core.text/Suggestion/word/#/ (JVM)
[WARNING] Couldn't resolve link: [P] in Privacy.kt (pfl-mobile core/JVM)
[WARNING] Couldn't resolve link: [P] in Privacy.kt (pfl-mobile core/JVM)
[WARNING] the version of a plugin is not given
"""


def test_names_without_words_and_links_to_nothing_are_named_once() -> None:
    with loaded("docs") as docs:
        assert docs.complaints(SAID) == [
            "Couldn't resolve link: [P] in Privacy.kt (pfl-mobile core/JVM)",
            "Undocumented: io.pflmobile.core.bundle/Manifest/values/ (JVM)",
            "Undocumented: io.pflmobile.core.text/Suggestion/word/#/ (JVM)",
        ]
        assert docs.complaints("[INFO] fine\n") == []
