"""What holds that the public part of the Swift package has words and its README compiles."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "ios" / "docs.py"


@pytest.fixture(scope="module")
def docs():
    found = importlib.util.spec_from_file_location("pfl_ios_docs", FILE)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def symbol(name, **more):
    place = {"uri": "file:///src/ios/Sources/PFLMobile/A.swift", "position": {"line": 6, "character": 4}}
    return {"identifier": {"precise": f"s:{name}"}, "pathComponents": ["A", name], "location": place} | more


def test_what_has_no_words_is_named_with_its_place(docs):
    said = {"docComment": {"lines": [{"text": "Words."}]}}
    made = {"identifier": {"precise": "s:SQ2neoiySbx_xtFZ::SYNTHESIZED::s:A"}}
    graph = {"symbols": [symbol("said", **said), symbol("silent"), symbol("made", **made)]}
    assert list(docs.without_words(graph)) == ["Sources/PFLMobile/A.swift:7: A.silent"]


def test_every_snippet_of_the_readme_is_compiled_with_its_imports(docs):
    source = docs.snippets()
    assert source.count("func snippet") == (FILE.parent / "README.md").read_text().count("```swift") > 4
    assert source.index("import PFLMobileSDK") < source.index("func snippet0")
    assert "import" not in source[source.index("func snippet0") :]
    assert "bundle: ModelBundle" in source
