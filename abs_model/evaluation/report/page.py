"""The page: its frame, with style, scripts and content put in."""

import base64
import hashlib
import html
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

_FOLDER = pathlib.Path(__file__).parent
# In this order: each uses what the ones before it define.
_SCRIPTS = ("common.js", "tables.js", "curves.js", "drawing.js", "gallery.js", "main.js")
_PLACE = re.compile(r"@@([A-Z_]+)@@")


def to_html(content: Mapping[str, Any]) -> str:
    """The page of what `make_content` made.

    The browser is told to load nothing and to run no script but the page's own, so that a name
    that looks like HTML can do nothing even where it is shown wrongly.
    """
    script = "\n".join(_read(name) for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    parts = {
        "TITLE": html.escape(content["title"]),
        "SCRIPT_HASH": f"sha256-{digest}",
        "STYLE": _read("page.css"),
        "SCRIPT": script,
        "CONTENT": _to_json(content),
    }
    # In one pass, so that nothing is looked for in what was put in.
    return _PLACE.sub(lambda place: parts[place[1]], _read("page.html"))


def _to_json(content: Mapping[str, Any]) -> str:
    """JSON that holds no tag: a browser ends a script at the first </script>, quotes or not."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _read(name: str) -> str:
    return (_FOLDER / name).read_text("utf-8").strip("\n")
