"""`GET /docs`: the API's OpenAPI document as a page for people, without scripts."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}: HTTP API</title>
<link rel="icon" href="icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="page.css">
</head>
<body>
<header class="top">
  <h1><img src="icon.svg" alt="" width="28" height="28">{title}</h1>
  <p>HTTP API</p>
</header>
<main class="api">
{about}
{operations}
</main>
<footer>
  <span>{title} {version}</span>
  <a href="./">Page</a>
  <a href="openapi.json">OpenAPI</a>
</footer>
</body>
</html>
"""
_BOUNDS = {
    "minimum": "at least {:g}",
    "exclusiveMinimum": "above {:g}",
    "maximum": "at most {:g}",
    "exclusiveMaximum": "below {:g}",
    "pattern": "as {}",
}


def page(document: Mapping[str, Any]) -> str:
    """Make the page.

    Args:
        document: OpenAPI 3.1 whose requests carry forms, if anything, with their schemas in place.

    Returns:
        HTML with every text of the document escaped.
    """
    info = document["info"]
    return _PAGE.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        about=_paragraphs(info["description"]),
        operations="\n".join(
            _section(f"{method.upper()} {path}", operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ),
    )


def _section(name: str, operation: Mapping[str, Any]) -> str:
    parts = [f"<h2><code>{escape(name)}</code></h2>", _paragraphs(operation["summary"])]
    parts.append(_paragraphs(operation.get("description", "")))
    rows = (
        (value["name"], _kind(value["schema"], value["required"]), value["description"])
        for value in operation.get("parameters", ())
    )
    parts.append(_table("In the address", rows))
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        schema = body["schema"]
        rows = (
            (key, _kind(value, key in schema["required"]), value["description"])
            for key, value in schema["properties"].items()
        )
        parts.append(_table(f"Fields of the form, {media}", rows))
    answers = dict(sorted(operation["responses"].items()))
    rows = ((key, ", ".join(value["content"]), value["description"]) for key, value in answers.items())
    parts.append(_table("Answers", rows))
    for status, answer in answers.items():
        lines = answer.get("headers", {}).items()
        rows = ((key, _kind(value["schema"], True), value["description"]) for key, value in lines)
        parts.append(_table(f"Header lines of {status}", rows))
    return "\n".join(["<section>", *filter(None, parts), "</section>"])


def _table(head: str, rows: Iterable[tuple[str, str, str]]) -> str:
    """List names, of what kind they are and what they mean; nothing if there are none."""
    lines = [
        f"<dt><code>{escape(name)}</code> <small>{escape(kind)}</small></dt><dd>{escape(meaning)}</dd>"
        for name, kind, meaning in rows
    ]
    return "\n".join([f"<h3>{escape(head)}</h3>", "<dl>", *lines, "</dl>"]) if lines else ""


def _kind(schema: Mapping[str, Any], required: bool) -> str:
    """Put a value's type, range and default into words."""
    # What may be left out is of its kind, or null.
    kind = next((k for k in schema.get("anyOf", ()) if k["type"] != "null"), schema)
    words = ["file" if kind.get("format") == "binary" else kind["type"]]
    if "enum" in kind:
        words = [" | ".join(kind["enum"])]
    words += [said.format(kind[bound]) for bound, said in _BOUNDS.items() if bound in kind]
    if "default" in schema:
        words.append(f"{json.dumps(schema['default'])} if left out")
    elif not required:
        words.append("optional")
    return ", ".join(words)


def _paragraphs(text: str) -> str:
    """Turn the little Markdown that there is, paragraphs and indented examples, into HTML."""
    return "\n".join(
        f"<pre>{escape(part.strip())}</pre>" if part.startswith("    ") else f"<p>{escape(part.strip())}</p>"
        for part in text.split("\n\n")
        if part
    )
