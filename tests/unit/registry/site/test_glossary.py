"""The words that pages explain are the glossary's."""

from registry.site.glossary import SOURCE, TARGET, meanings, script


def test_the_script_says_what_the_glossary_says_now() -> None:
    assert TARGET.read_text() == script(SOURCE.read_text()), "python -m registry.site.glossary makes it anew"


def test_a_line_of_several_words_is_of_each_and_has_no_marks() -> None:
    said = meanings("| word | meaning |\n|---|---|\n| **`a`** | x |\n| budget, ceiling | the `most` of [all](b.md) | – |\n")
    assert said == {"**a**": "x", "budget": "the most of all", "ceiling": "the most of all"}
    assert len(meanings(SOURCE.read_text())) > 150
