"""The service's description as a page that loads nothing from elsewhere: no script, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { overflow-x: auto; padding: .75rem; border: 1px solid #8886; border-radius: 6px; }
h2 { margin-top: 2.5rem; } td { padding: .1rem 1rem .1rem 0; vertical-align: top; }
"""
CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document."""
    info = document["info"]
    parts = [f"<h1>{escape(info['title'])}</h1><p>{escape(info.get('description', ''))}</p>"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method, operation))
    parts.append("<h2>Schemas</h2>")
    for name, schema in sorted(document.get("components", {}).get("schemas", {}).items()):
        text = json.dumps(schema, indent=1)
        title = f"<summary><code>{escape(name)}</code></summary>"
        parts.append(f'<details id="{escape(name)}">{title}<pre>{escape(text)}</pre></details>')
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
    title = f"<title>{escape(info['title'])}</title>"
    return f'<!doctype html><html lang="en"><head>{head}{title}</head><body>{"".join(parts)}</body></html>'


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    rows = []
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        rows.append(("takes", _schemas(body)))
    for status, response in operation.get("responses", {}).items():
        rows.append((status, f"{escape(response.get('description', ''))} {_schemas(response.get('content', {}))}"))
    table = "".join(f"<tr><td><code>{escape(str(a))}</code></td><td>{b}</td></tr>" for a, b in rows)
    about = escape(operation.get("description") or operation.get("summary") or "")
    return f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{about}</p><table>{table}</table>"


def _schemas(content: Mapping[str, Any]) -> str:
    names = [str(kind.get("schema", {}).get("$ref", "")).rpartition("/")[2] for kind in content.values()]
    return " ".join(f'<a href="#{escape(name)}"><code>{escape(name)}</code></a>' for name in names if name)
