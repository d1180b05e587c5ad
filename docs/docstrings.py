"""Docstrings, which are written in Markdown, as the reStructuredText that Sphinx reads of them."""

import re
from collections.abc import Iterator

# Code, `x`, or a formula, $x$; both may go on in the next line.
_INLINE = re.compile(r"(`[^`]+`|\$[^$]+\$)")
_CLASS = re.compile(r"[A-Z]\w*[a-z]\w*|[A-Z]{2,}\w*")
# A line that ends the text before it.
_SECTION = re.compile(r"(Args|Returns|Yields|Raises|Example|Examples|Attributes|Source):")


def restructured(lines: list[str]) -> list[str]:
    """The docstring with its formulas, tables, names and literal paragraphs marked for Sphinx.

    Args:
        lines: of one docstring, whose sections (Args, Raises, …) stay as they are.

    Example:
        >>> restructured(["The root of `x`, $x^2$ of", "", "$$x = 1$$"])
        ['The root of ``x``, :math:`x^2` of', '', '', '.. math::', '', '    x = 1', '']
    """
    result: list[str] = []
    for kind, part in _parts(lines):
        indent = part[0][: len(part[0]) - len(part[0].lstrip())]
        if kind == "text":
            result += inline("\n".join(part)).split("\n")
        elif kind == "formula":
            formula = (line.strip() for line in part)
            body = "\n".join(formula).removeprefix("$$").removesuffix("$$").split("\n")
            result += ["", f"{indent}.. math::", "", *(f"{indent}    {line}" for line in body), ""]
        elif kind == "table":
            result += ["", *(indent + line for line in _table(part)), ""]
        elif kind == "literal":
            result += ["::", "", *part]
        else:
            result += part
    return result


def inline(text: str) -> str:
    """A text with its code and formulas marked; classes are links to where they are described.

    Example:
        >>> inline("all `CMANP`s of |x| points, $N$")
        'all :py:obj:`~.CMANP`\\\\ s of \\\\|x\\\\| points, :math:`N`'
    """
    pieces = _INLINE.split(text)
    marked = []
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            # Neither a substitution, nor the start of what is emphasised.
            marked.append(piece.replace("|", r"\|").replace("[*", r"[\*"))
            continue
        content = piece[1:-1]
        if piece[0] == "$":
            piece = f":math:`{content}`"
        else:
            piece = f":py:obj:`~.{content}`" if _CLASS.fullmatch(content) else f"``{content}``"
        # Marks end before a space or a sign; a backslash and a space stand for nothing.
        before, after = pieces[number - 1][-1:], pieces[number + 1][:1]
        marked.append(r"\ " * before.isalnum() + piece + r"\ " * after.isalnum())
    return "".join(marked)


def _parts(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The lines in pieces of one kind: text, formula, table, literal, code, or blank."""
    number, text = 0, ""
    while number < len(lines):
        line, first = lines[number], number
        stripped, indented = line.strip(), line.startswith("    ")
        number += 1
        if not stripped:
            kind = "blank"
        elif stripped.startswith("$$"):
            while not lines[number - 1].endswith("$$"):
                number += 1
            kind = "formula"
        elif stripped.startswith("|"):
            while number < len(lines) and lines[number].strip().startswith("|"):
                number += 1
            kind = "table"
        elif stripped in ("Example:", "Examples:"):
            while number < len(lines) and (not lines[number] or lines[number].startswith("    ")):
                number += 1
            kind = "code"
        elif indented and not lines[first - 1].strip() and not _SECTION.match(text):
            while number < len(lines) and (not lines[number] or lines[number].startswith("    ")):
                number += 1
            kind = "literal"
        else:
            # A paragraph, within which a name or a formula may go on in the next line.
            while number < len(lines) and lines[number].strip():
                if lines[number].strip().startswith(("$$", "|")):
                    break
                number += 1
            kind = "text"
        if kind != "blank" and not indented:
            text = stripped
        yield kind, lines[first:number]


def _table(lines: list[str]) -> list[str]:
    """A table of Markdown as a `list-table`."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    result = [".. list-table::", "    :header-rows: 1", ""]
    for row in (rows[0], *rows[2:]):
        marks = ["    * -", *["      -"] * (len(row) - 1)]
        result += [f"{mark} {inline(cell)}" for mark, cell in zip(marks, row)]
    return result
