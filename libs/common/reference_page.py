"""An OpenAPI document as a page for people: one HTML file without scripts, which needs nothing from elsewhere."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

_STYLE = Path(__file__).with_name("reference.css").read_text("utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: nothing but the one style that is in it."""

_BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "maxLength": "length to",
    "default": "default",
}
_SCHEMAS = "#/components/schemas/"


def render_page(document: Mapping[str, Any]) -> str:
    """The page of a document that `libs.common.openapi` made."""
    page = _Page(document)
    title = escape(document["info"]["title"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>"
        f'<body><div class="page"><nav aria-label="Operations">{page.navigation()}</nav><main>'
        f"<h1>{title}<small>{escape(document['info']['version'])}</small></h1>"
        f"{_prose(document['info']['description'])}"
        '<p>For programs: <a href="openapi.json">openapi.json</a> (OpenAPI 3.1).</p>'
        f"{page.operations()}{page.schemas()}</main></div></body></html>\n"
    )


class _Page:
    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._components = document["components"]
        self._groups: dict[str, list[tuple[str, str, dict[str, Any]]]] = {tag["name"]: [] for tag in document["tags"]}
        for path, item in document["paths"].items():
            for method, operation in item.items():
                self._groups[operation["tags"][0]].append((method, path, operation))

    def navigation(self) -> str:
        groups = "".join(
            f"<h2>{escape(name)}</h2><ul>"
            + "".join(
                f'<li><a href="#{escape(operation["operationId"])}">{_method(method)}'
                f"<span>{_inline(operation['summary'])}</span></a>"
                for method, _, operation in operations
            )
            + "</ul>"
            for name, operations in self._groups.items()
        )
        groups += '<h2>Shapes</h2><ul><li><a href="#schemas">What is sent and answered</a></ul>'
        title = escape(self._document["info"]["title"])
        return (
            f'<a class="title" href="#">{title}</a><div class="groups">{groups}</div>'
            f'<details class="menu"><summary>Operations</summary>{groups}</details>'
        )

    def operations(self) -> str:
        return "".join(
            f"<section><h2>{escape(tag['name'])}</h2>{_prose(tag['description'])}"
            + "".join(self._operation(*operation) for operation in self._groups[tag["name"]])
            + "</section>"
            for tag in self._document["tags"]
        )

    def schemas(self) -> str:
        rendered = "".join(self._schema(name, schema) for name, schema in sorted(self._components["schemas"].items()))
        return f'<section id="schemas"><h2>Shapes</h2>{rendered}</section>'

    def _operation(self, method: str, path: str, operation: dict[str, Any]) -> str:
        text, _, scope = operation["description"].rpartition("\n\n")
        return (
            f'<article id="{escape(operation["operationId"])}"><h3>{_inline(operation["summary"])}</h3>'
            f'<div class="route">{_method(method)}<code>{escape(path).replace("/", "/<wbr>")}</code></div>'
            f'{_prose(text)}<p class="scope">{_inline(scope or operation["description"])}</p>'
            f"{self._parameters(operation.get('parameters', []))}{self._body(operation.get('requestBody'))}"
            f"{self._responses(operation['responses'])}</article>"
        )

    def _parameters(self, parameters: Iterable[dict[str, Any]]) -> str:
        rows = [
            (
                f"<code>{escape(parameter['name'])}</code>{_required(parameter.get('required', False))}",
                _typed(f"{parameter['in']}, {self._type(parameter['schema'])}", parameter),
            )
            for parameter in parameters
        ]
        return f"<h4>Parameters</h4>{_table(rows)}" if rows else ""

    def _body(self, body: dict[str, Any] | None) -> str:
        if body is None:
            return ""
        return f"<h4>Body</h4>{_prose(body.get('description', ''))}{self._content(body['content'])}"

    def _responses(self, responses: Mapping[str, Any]) -> str:
        answers, problems = "", []
        for status, response in responses.items():
            found = self._resolve(response, "responses")
            described = f"<code>{status}</code>"
            content = found.get("content", {})
            if "application/problem+json" not in content:
                answers += f"<h4>{described} {_inline(found['description'])}</h4>{self._content(content)}"
            else:
                problems.append((described, f"{escape(found['description'])} {self._kinds(found)}"))
        return f"{answers}<details><summary>Errors</summary>{_table(problems)}</details>"

    def _kinds(self, response: dict[str, Any]) -> str:
        examples = response["content"]["application/problem+json"]["examples"]
        return "".join(
            f'<p class="kinds"><code>{escape(kind)}</code> '
            f"{_inline(self._resolve(example, 'examples')['value']['detail'])}</p>"
            for kind, example in examples.items()
        )

    def _content(self, content: Mapping[str, Any]) -> str:
        if not content:
            return ""
        types = ", ".join(f"<code>{escape(name)}</code>" for name in content)
        described = next(iter(content.values()))
        kind = f" {self._type(described['schema'])}" if "$ref" in described.get("schema", {}) else ""
        if "example" not in described:
            return f"<p>{types}{kind}</p>"
        example = described["example"]
        text = example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)
        return (
            f"<p>{types}{kind}</p><details><summary>Example</summary><pre><code>{escape(text)}</code></pre></details>"
        )

    def _schema(self, name: str, schema: dict[str, Any]) -> str:
        if "enum" in schema:
            content = f"<p>{' '.join(f'<code>{escape(str(value))}</code>' for value in schema['enum'])}</p>"
        else:
            required = schema.get("required", [])
            content = _table(
                (
                    f"<code>{escape(key)}</code>{_required(key in required)}",
                    _typed(self._type(value), value),
                )
                for key, value in schema.get("properties", {}).items()
            )
        return (
            f'<article id="schema-{escape(name)}"><h3>{escape(name)}</h3>'
            f"{_prose(schema.get('description', ''))}{content}</article>"
        )

    def _type(self, schema: Mapping[str, Any]) -> str:
        """What a value may be, in a few words."""
        if "$ref" in schema:
            name = escape(schema["$ref"].removeprefix(_SCHEMAS))
            return f'<a href="#schema-{name}">{name}</a>'
        if "anyOf" in schema:
            return " or ".join(self._type(choice) for choice in schema["anyOf"])
        if "enum" in schema:
            return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
        if schema.get("type") == "array":
            return f"list of {self._type(schema.get('items', {}))}"
        if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
            return f"object of {self._type(schema['additionalProperties'])}"
        return escape(str(schema.get("format") or schema.get("type", "any value"))) + _bounds(schema)

    def _resolve(self, found: dict[str, Any], kind: str) -> dict[str, Any]:
        reference = found.get("$ref")
        resolved: dict[str, Any] = self._components[kind][reference.rpartition("/")[2]] if reference else found
        return resolved


def _bounds(schema: Mapping[str, Any]) -> str:
    said = [
        f"{word} {json.dumps(schema[key])}" for key, word in _BOUNDS.items() if schema.get(key) not in (None, {}, [])
    ]
    return escape(f", {', '.join(said)}") if said else ""


def _typed(kind: str, described: Mapping[str, Any]) -> str:
    return f'<span class="type">{kind}</span>{_prose(described.get("description", ""))}'


def _method(method: str) -> str:
    return f'<span class="method {method}">{method.upper()}</span>'


def _required(required: bool) -> str:  # noqa: FBT001
    return ' <span class="required">required</span>' if required else ""


def _table(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{first}</td><td>{second}</td></tr>" for first, second in rows)
    return f'<div class="table"><table>{body}</table></div>' if body else ""


def _prose(text: str) -> str:
    """Paragraphs with `code` in them."""
    return "".join(f"<p>{_inline(part)}</p>" for part in text.split("\n\n") if part.strip())


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
