"""The code of the README and of docs/ runs as it stands there, and its commands are taken.

Python runs in order, in one namespace a page. Commands that make and ask states run too, on small
files; those that train or measure are parsed by their own parsers, which make the model, the data
and the trainer of a configuration. A block that cannot run here says why in a comment above it.
That each configuration trains as it stands is tested by tests/test_configs.py.
"""

import argparse
import doctest
import re
import shlex
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import yaml
from helpers.pages import RUN, ShortTrainer, make_files, names_of

from npbench.cli import main
from npbench.commands import COMMANDS
from npbench.commands.trainer import NPBenchCLI
from npbench.messages import options_of

ROOT = Path(__file__).parents[1]
PAGES = ["README.md"]
PAGES += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))]
PAGES += [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("npbench/pretrained/*/README.md"))]
# Blocks that do not run: how many of a page, and all of them say why.
NOT_RUN = {"docs/clusters.md": 7, "docs/deployment.md": 2}

_BLOCK = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)
_INLINE = re.compile(r"`((?:python -m benchmarks\.|npbench )[^`]+)`")
# Whose configurations take seconds to be parsed, or whose models train.
_SLOW = "accuracy", "commands", "fine-tuning", "pretrained"
_STATES = "condition", "query", "forget", "merge", "export"
_FIELDS = "--model.", "--data.", "--trainer."
_TRAINER = [name for name, command in COMMANDS.items() if command.module == "trainer"]


class Block(NamedTuple):
    """A block of code of a page; `reason` says why it does not run, if it does not."""

    line: int
    language: str
    code: str
    reason: str | None


class Parsed(Exception):
    """A parser, the argument, has taken what it is given."""


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [
        Block(text[: match.start()].count("\n") + 1, match[2], match[3], match[1])
        for match in _BLOCK.finditer(text)
    ]


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command of a shell block; a comment ends a line, a backslash does not."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        words = [re.sub(r"\$?\bRUN\b", RUN, word) for word in words]
        if words and "=" not in words[0]:
            yield words


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A page, in a folder with the files that its code names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(L, "Trainer", ShortTrainer)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    make_files(request.param)
    return request.param


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command that makes or asks a state, and parse the arguments of any other."""
    program, *arguments = words
    # A cluster, or a program of torch.export, takes long to be made.
    costly = "--engine" in words or words[-1].endswith(".pt2")
    with monkeypatch.context() as patch:
        if arguments[:2] == ["fit", "--config"] and len(arguments) == 3:
            assert Path(arguments[2]).is_file()
        elif program == "npbench" and arguments[0] in _TRAINER:
            patch.setattr(NPBenchCLI, "_run_subcommand", lambda *_: None)
            with_help = any(".help" in argument for argument in arguments)
            if not with_help:
                main(arguments)
                return
            with pytest.raises(SystemExit, match=r"^0$"):
                main(arguments)
        elif program == "npbench" and arguments[0] in _STATES and not costly:
            main(arguments)
        elif program == "npbench":
            take_arguments_alone(patch)
            with pytest.raises(Parsed):
                main(arguments)
        elif program == "make":
            targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
            assert set(arguments) <= set(targets[1].split())
        elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
            take_arguments_alone(patch)
            patch.setattr(sys, "argv", words[2:])
            package = (ROOT / words[2].replace(".", "/")).is_dir()
            with pytest.raises(Parsed):
                import_module(words[2] + ".__main__" * package).main()
        else:
            assert words == shlex.split("python -m venv .venv && .venv/bin/pip install -e .[dev]")


def take_arguments_alone(patch: pytest.MonkeyPatch, at_once: bool = False) -> None:
    """Let parsers end with `Parsed` once they have taken all arguments, or before."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_known_args(parser: Any, args: Any = None, namespace: Any = None) -> None:
        if not at_once:
            _, rest = parse(parser, args, namespace)
            # Benchmarks and commands that take fields of a configuration ask for what is left.
            assert not rest or rest[0].startswith(_FIELDS), f"unknown: {rest}"
        raise Parsed(parser)

    def parse_args(parser: Any, args: Any = None, namespace: Any = None) -> None:
        if not at_once:
            _, rest = parse(parser, args, namespace)
            assert not rest, f"unknown: {rest}"
        raise Parsed(parser)

    patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * any(name in page for name in _SLOW))
     for page in PAGES],
    indirect=True,
)  # fmt: skip
def test_the_blocks_of_a_page_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = names_of(page)
    found = blocks(page)
    assert sum(block.reason is not None for block in found) == NOT_RUN.get(page, 0)
    for block in found:
        if block.reason is not None:
            continue
        where = f"{page}, line {block.line}"
        if block.language == "python":
            exec(compile("\n" * block.line + block.code, str(ROOT / page), "exec"), namespace)
        elif block.language == "sh":
            for words in commands(block.code):
                print(where, *words)
                check_command(words, monkeypatch)
        elif block.language == "yaml":
            Path("block.yaml").write_text(block.code)
            assert yaml.safe_load(block.code)
            start = ["fit", "--config", "configs/gp/cmanp-small.yaml", "--config", "block.yaml"]
            check_command(["npbench", *start], monkeypatch)
        else:
            raise AssertionError(f"{where}: nobody knows how to run {block.language}")


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_the_text_have_the_options_that_it_names(
    page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for span in _INLINE.findall((ROOT / page).read_text()):
        words = [word for word in shlex.split(span) if word != "…"]
        if words[0] == "python":
            check_command(words, monkeypatch)
            continue
        _, command, *rest = words
        named = {word for word in rest if word.startswith("--")}
        assert command in COMMANDS or command == "--help", span
        if named and command not in _TRAINER:
            with monkeypatch.context() as patch:
                take_arguments_alone(patch, at_once=True)
                with pytest.raises(Parsed) as parsed:
                    main([command])
            (parser,) = parsed.value.args
            unknown = named - set(options_of(parser))
            assert all(name.startswith(_FIELDS) for name in unknown), span


def test_the_formulas_of_docstrings_are_read() -> None:
    spec = spec_from_file_location("docstrings", ROOT / "docs/docstrings.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
