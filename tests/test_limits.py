"""docs/limits.md quotes messages that the package has."""

import ast
import re

from conftest import ROOT

PAGE = (ROOT / 'docs/limits.md').read_text()
MESSAGES = re.findall(r'^\| `(.*?)` \|', PAGE, re.MULTILINE)


def text_of(node):
    """A string as the source writes it, with … for what is put in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return ''.join(map(text_of, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
    return '…'


def test_each_message_is_one_of_the_package():
    sources = [path.read_text() for path in (ROOT / 'convnext_dense').rglob('*.py')]
    texts = [text_of(node) for source in sources for node in ast.walk(ast.parse(source))]
    assert len(MESSAGES) > 40
    unknown = [message for message in MESSAGES if not any(message in text for text in texts)]
    assert unknown == []
