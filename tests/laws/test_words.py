"""The code speaks the field's words: names, comments and texts hold none of the words below."""

import io
import re
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "medvol"
#: Words of a private language, and beside them what to write.
FORBIDDEN = re.compile(
    r"""
    \b(?:
        rooms? | houses? | doors? | gates? | gated          # package, entry, input checks
      | (?<!connection\ )refus(?:e|es|ed|ing|al|als)        # reject, error, "is not supported"
      | foretell(?:s|ing)? | foretold | foresee[sn]?        # estimate, predict
      | missed | invent(?:s|ed)                             # false negative, false positive
      | told | said | says? | saying | wants? | heeds? | mends? | mended
      | vouch(?:es|ed)? | bur(?:y|ies|ied) | deals?         # given, states, fixes, handles
      | pictures? | strangers? | rungs? | ladders? | leans? # image or figure, unknown, fallback
      | senses? | lest | anew | wish(?:es)?                 # meaning, so that not, again, options
    )\b
    | \b(?<!there\ )(?:is|are)\ no\ (?!longer|more|less|such)  # "is not a"
    """,
    re.IGNORECASE | re.VERBOSE,
)


def spoken(source: str) -> str:
    """Names, comments and string literals of a module, words within names set apart."""
    text = getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)  # Python 3.12 splits f-strings
    kinds = (tokenize.NAME, tokenize.COMMENT, tokenize.STRING, text)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts = (token.string for token in tokens if token.type in kinds)
    apart = (re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", text) for text in texts)
    # An operating system's own word for a closed port is quoted as it stands.
    return "\n".join(" ".join(text.split()) for text in apart if text != '"refused"')


def named(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_module_uses_no_word_of_a_private_language(path):
    lines = spoken(path.read_text(encoding="utf-8")).splitlines()
    found = [(hit.group(), line) for line in lines if (hit := FORBIDDEN.search(line))]
    assert not found


def test_the_law_reads_the_package():
    assert len(MODULES) > 200


@pytest.mark.parametrize(
    "source",
    [
        "def refuse_it(): pass",
        "class LadderRun: pass",
        "x = f'{path}: is no number'",
        "# what the gate accepted",
        '"""Says where\n    it is."""',
    ],
)
def test_words_are_found_in_names_comments_and_texts(source):
    assert FORBIDDEN.search(spoken(source))


@pytest.mark.parametrize(
    "source",
    ["# where there is no label", "boolean = True", "'connection refused'", "x = 'headroom'"],
)
def test_other_words_are_left_alone(source):
    assert not FORBIDDEN.search(spoken(source))
