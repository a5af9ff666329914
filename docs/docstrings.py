"""Docstrings as the site shows them: roles of reStructuredText become code, its equations blocks."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?(?:[^`<]*<)?([^`>]+)>?`")
MATH = re.compile(r"^([ \t]*)\.\. math::[ ]*(.*(?:\n(?:\1[ \t]+.*|[ \t]*(?=\n\1[ \t]+)))*)", flags=re.M)
EXAMPLE = re.compile(r"^([ \t]*)Example:$", flags=re.M)
LITERAL = re.compile(r"::$", flags=re.M)


def plain(text: str) -> str:
    """Markdown of a docstring."""
    text = MATH.sub(lambda m: textwrap.indent(equation(m[2]), m[1]), text)
    text = ROLE.sub(r"`\1`", EXAMPLE.sub(r"\1Examples:", text))
    return LITERAL.sub(":", text.replace("\n::\n", "\n\n"))


def equation(body: str) -> str:
    """The source of an equation as a block: it reads without a script from the network."""
    first, _, rest = body.partition("\n")
    lines = [line for line in (first.strip(), textwrap.dedent(rest).strip()) if line]
    return "\n```tex\n" + "\n".join(lines) + "\n```\n"


class Plain(Extension):
    """Makes every docstring Markdown when it is collected."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)
