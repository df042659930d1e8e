"""Every command line that the docs, the cards or a message name can be typed."""

import functools
import re
from pathlib import Path

import pytest
import typer

from medvol.cli.main import VERBS, build_app

ROOT = Path(__file__).parents[2]
_COMMAND = re.compile(r"medvol ((?:[a-z]+ ?){1,2})([^`\n|]*)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+|(?<![\w-])-[a-z](?=[\s,])")


def told():
    pages = [ROOT / "README.md", *ROOT.glob("configs/bundles/*.md"), *ROOT.glob("docs/*.md"),
             *ROOT.glob("tools/bench/*.md"), *ROOT.glob("medvol/**/*.py")]  # fmt: skip
    for page in pages:
        text = page.read_text().replace("\\\n", " ")
        for found in _COMMAND.finditer(text):
            words = found[1].split()
            if words[0] in VERBS:
                line = re.split(r"[;#]|&&|\s{2,}#", found[2])[0]
                yield page.relative_to(ROOT).as_posix(), tuple(words), tuple(_OPTION.findall(line))


@functools.cache
def app():
    return typer.main.get_command(build_app())


def options_of(words):
    command = app()
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    return own | {"--help"}


def test_commands_are_found():
    assert len({(words, options) for _, words, options in told()}) > 40


@pytest.mark.parametrize("page", sorted({page for page, _, options in told() if options}))
def test_options_exist(page):
    wrong = [
        f"medvol {' '.join(words)} {option}"
        for where, words, options in told()
        if where == page
        for option in options
        if option not in options_of(words)
    ]
    assert wrong == []
