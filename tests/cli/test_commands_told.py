"""Every command line that the docs, the cards or a message name can be typed."""

import functools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from medvol.cli.main import VERBS, build_app, main

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


def verbs():
    """Every verb as the words that a user types, and its module."""
    for name, target in VERBS.items():
        for inner, module in ({"": target} if isinstance(target, str) else target).items():
            yield (name, inner) if inner else (name,), module


@functools.cache
def app():
    return build_app()


def command_of(words):
    command = app()
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    return command


def options_of(words):
    params = command_of(words).params
    return {name for param in params for name in (*param.opts, *param.secondary_opts)} | {"--help"}


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


@pytest.mark.parametrize("words", [words for words, _ in verbs()], ids=" ".join)
def test_every_help_ends_with_an_example_that_can_be_typed(words, capsys):
    assert main([*words, "--help"]) == 0
    _, found, example = capsys.readouterr().out.rpartition("Example: ")
    assert found
    typed = shlex.split(" ".join(example.split()))
    assert typed[: 1 + len(words)] == ["medvol", *words]
    command = command_of(words)
    context = command.make_context(words[-1], typed[1 + len(words) :], resilient_parsing=False)
    assert context.params


@pytest.mark.parametrize("words", [words for words, _ in verbs()], ids=" ".join)
def test_shared_options_are_spelt_alike_in_every_verb(words):
    options = options_of(words)
    assert "--json" in options
    assert not options & {"--out", "--trust", "--is-trusted"}
    assert ("-o" in options) == ("--output" in options)


def test_a_verb_imports_no_torch_and_no_other_verb():
    found = dict(verbs())
    assert len(found) > 20
    code = (
        "import contextlib, io, json, sys\n"
        "from medvol.cli.main import main\n"
        "names = set()\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        main([*words, '--help'])\n"
        "    now = {n for n in sys.modules if n.startswith('medvol.cli.') or n == 'torch'}\n"
        "    print(json.dumps(sorted(now - names)))\n"
        "    names |= now\n"
    )
    # Verbs of a group come before the group's own help, which lists them all.
    order = sorted(found, key=lambda words: (words[0], -len(words)))
    run = subprocess.run([sys.executable, "-c", code, json.dumps(order)], capture_output=True,
                         text=True, check=True)  # fmt: skip
    shared = {"medvol.cli.main", "medvol.cli._options", "medvol.cli._progress"}
    for words, line in zip(order, run.stdout.splitlines(), strict=True):
        own = {f"medvol.cli.{found[words]}"}
        group = VERBS[words[0]]
        own |= {f"medvol.cli.{group['']}"} if isinstance(group, dict) and "" in group else set()
        assert set(json.loads(line)) - shared <= own, words


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [(["predct"], "predict"), (["bundle", "verif"], "verify"), (["predict", "--formt"], "--format"),
     (["train", "--resum"], "--resume")],
)  # fmt: skip
def test_a_misspelt_verb_or_option_is_answered_with_the_nearest(typed, nearest, capsys):
    assert main(typed) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert nearest in line


def test_medvol_alone_shows_its_help(capsys):
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out
