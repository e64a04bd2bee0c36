"""The page at /docs: the interface as OpenAPI describes it, without scripts, all from here."""

import json
import re
import shlex
from typing import Any

import jinja2
from markupsafe import Markup, escape

from engine.frontend.parameters import IGNORED, NOT_YET

_EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 32},
    "/tokenize": {"prompt": "Once upon a time"},
    "/detokenize": {"tokens": [1, 2, 3]},
}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}
_MAX_SHOWN_BOUND = 2**53
"""Bounds beyond it, up to which every program counts exactly, are those of 64 bits."""


def docs_page(openapi: dict[str, Any], model: str, url: str) -> str:
    """HTML with every path, its parameters, the objects that these hold, and examples.

    Args:
        model: Name that the examples send.
        url: Where the examples find the server, as the reader of the page does.
    """
    schemas = openapi["components"]["schemas"]
    operations = [
        {
            "method": method.upper(),
            "path": path,
            "description": operation.get("description", ""),
            "body": _object(schemas[body]) if (body := _body(operation)) else None,
            "example": _example(method, url, path, model, asks_for_key="security" in operation),
        }
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    bodies = {_body(operation) for each in openapi["paths"].values() for operation in each.values()}
    objects = {name: _object(schemas[name]) for name in schemas if name not in bodies}
    schemes = openapi["components"].get("securitySchemes", {})
    page: str = _PAGE.render(
        info=openapi["info"], operations=operations, objects=objects, schemes=schemes.values()
    )
    return page


def _body(operation: dict[str, Any]) -> str:
    """Name of the schema of its body, or ""."""
    if "requestBody" not in operation:
        return ""
    return _name(operation["requestBody"]["content"]["application/json"]["schema"])


def _name(reference: dict[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    """What is known of an object's fields: the required ones first, those that do little apart."""
    required = schema.get("required", [])
    fields = schema["properties"]
    meanings = {name: field.get("description", "") for name, field in fields.items()}
    used = [name for name in fields if meanings[name] not in (IGNORED, NOT_YET)]
    return {
        "fields": [
            {
                "name": name,
                "is_required": name in required,
                "type": _type_of(fields[name]),
                "meaning": meanings[name],
            }
            for name in sorted(used, key=lambda name: name not in required)
        ],
        "ignored": [name for name in fields if meanings[name] == IGNORED],
        "not_yet": {
            name: [json.dumps(value) for value in fields[name]["enum"] if value is not None]
            for name in fields
            if meanings[name] == NOT_YET
        },
    }


def _type_of(schema: dict[str, Any]) -> Markup:
    """In a few words: `number, 0 to 2`, `string or array of integer`; objects are links."""
    if "$ref" in schema:
        return Markup('<a href="#{0}">{0}</a>').format(_name(schema))
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        names = dict.fromkeys(_type_of(each) for each in choices if each.get("type") != "null")
        return Markup(" or ").join(names)
    if "const" in schema or "enum" in schema:
        values = schema.get("enum") or [schema["const"]]
        return Markup(" or ").join(Markup("<code>{}</code>").format(json.dumps(v)) for v in values)
    if schema.get("type") == "array":
        items = schema["items"].items()
        return Markup("array of ") + _type_of({k: v for k, v in items if k not in _BOUNDS})
    return escape(", ".join([str(schema.get("type", "any")), *_bounds(schema)]))


def _bounds(schema: dict[str, Any]) -> list[str]:
    found = {key: schema[key] for key in _BOUNDS if abs(schema.get(key, 2**64)) < _MAX_SHOWN_BOUND}
    if found.keys() == {"minimum", "maximum"}:
        return [f"{found['minimum']:g} to {found['maximum']:g}"]
    return [f"{_BOUNDS[key]} {limit:g}" for key, limit in found.items()]


def _example(method: str, url: str, path: str, model: str, asks_for_key: bool) -> str:
    """The line for a shell."""
    where = shlex.quote(url + path.replace("{model}", model))
    if asks_for_key:
        where += ' -H "Authorization: Bearer $KEY"'
    if method != "post":
        return f"curl {where}"
    body = shlex.quote(json.dumps({"model": model, **_EXAMPLES.get(path, {})}))
    return f"curl {where} -H 'Content-Type: application/json' \\\n  -d {body}"


def _as_html(text: str) -> Markup:
    """Text in which backticks mark code."""
    parts = re.split("`([^`]*)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else part
        for index, part in enumerate(parts)
    )


_ENVIRONMENT = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters["as_html"] = _as_html
_PAGE = _ENVIRONMENT.from_string("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ info.title }} {{ info.version }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
  pre { background: #f3f3f3; padding: .7em; white-space: pre-wrap; overflow-wrap: anywhere }
  table { border-collapse: collapse }
  td, th { border-top: 1px solid #ccc; padding: .2em 1em .2em 0; text-align: left;
           vertical-align: top }
  td:first-child { white-space: nowrap }
  td:last-child { min-width: 24em }
  h2 { margin-top: 2em }
  h2 code { background: #e6eefb; padding: .1em .4em }
</style>
{% macro fields_of(object) %}
<table>
<tr><th>name<th>type<th>meaning
{% for each in object.fields %}
<tr><td><code>{{ each.name }}</code>{{ " (required)" if each.is_required }}
<td>{{ each.type }}<td>{{ each.meaning | as_html }}
{% endfor %}
</table>
{% if object.ignored %}
<p>Accepted and ignored:
{% for name in object.ignored %}
<code>{{ name }}</code>{{ "." if loop.last else "," }}
{% endfor %}
{% endif %}
{% if object.not_yet %}
<p>Not supported yet, and accepted only as null or at the value in brackets, which change nothing:
{% for name, values in object.not_yet.items() %}
<code>{{ name }}</code>{{ " (" ~ values | join(" or ") ~ ")" if values }}
{{- "." if loop.last else "," }}
{% endfor %}
{% endif %}
{% endmacro %}
<h1>{{ info.title }} {{ info.version }}</h1>
<p>The interface of OpenAI for text. Machines read <a href="/openapi.json">/openapi.json</a>.
{% for scheme in schemes %}
<p>It asks for a key, sent as <code>Authorization: Bearer KEY</code>. {{ scheme.description }}
The examples take it from the shell: <code>KEY=...</code>
{% endfor %}
{% for operation in operations %}
<h2><code>{{ operation.method }} {{ operation.path }}</code></h2>
<p>{{ operation.description | as_html }}
<pre>{{ operation.example }}</pre>
{{ fields_of(operation.body) if operation.body }}
{% endfor %}
{% for name, object in objects.items() %}
<h2 id="{{ name }}">{{ name }}</h2>
{{ fields_of(object) }}
{% endfor %}
</html>
""")
