"""The page at /docs: the interface as OpenAPI describes it, without scripts, all from here."""

import json
from typing import Any

import jinja2

_EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 32},
}


def docs_page(openapi: dict[str, Any], model: str) -> str:
    """HTML with every path, its parameters, and an example.

    Args:
        model: Name that the examples send.
    """
    operations = [
        {
            "method": method.upper(),
            "path": path,
            "description": operation.get("description", ""),
            "parameters": _parameters(openapi, operation),
            "example": _example(method, path, model),
        }
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    page: str = _PAGE.render(info=openapi["info"], operations=operations)
    return page


def _parameters(openapi: dict[str, Any], operation: dict[str, Any]) -> list[dict[str, Any]]:
    if "requestBody" not in operation:
        return []
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = openapi["components"]["schemas"][reference.rpartition("/")[2]]
    return [
        {
            "name": name,
            "is_required": name in schema["required"],
            "type": _type_of(field),
            "description": field.get("description", ""),
        }
        for name, field in schema["properties"].items()
    ]


def _type_of(schema: dict[str, Any]) -> str:
    """In a few words: `number 0..2`, `string or array of integer`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        names = dict.fromkeys(_type_of(each) for each in choices if each.get("type") != "null")
        return " or ".join(names)
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    name = str(schema.get("type", "any"))
    if name == "array":
        return f"array of {_type_of(schema['items'])}"
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    return name if low is None and high is None else f"{name} {_bound(low)}..{_bound(high)}"


def _bound(limit: float | None) -> str:
    if limit is None:
        return ""
    return str(int(limit)) if limit == int(limit) else str(limit)


def _example(method: str, path: str, model: str) -> str:
    if method != "post":
        return f"curl $URL{path}"
    body = json.dumps({"model": model, **_EXAMPLES[path]})
    return f"curl $URL{path} -H 'Content-Type: application/json' -d '{body}'"


_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ info.title }} {{ info.version }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
  pre { background: #f3f3f3; padding: .7em; overflow-x: auto }
  table { border-collapse: collapse }
  td, th { border-top: 1px solid #ccc; padding: .2em .8em .2em 0; text-align: left;
           vertical-align: top }
  h2 code { background: #e6eefb; padding: .1em .4em }
</style>
<h1>{{ info.title }} {{ info.version }}</h1>
<p>The interface of OpenAI for text. Machines read <a href="/openapi.json">/openapi.json</a>.</p>
{% for operation in operations %}
<h2><code>{{ operation.method }} {{ operation.path }}</code></h2>
<p>{{ operation.description }}</p>
<pre>{{ operation.example }}</pre>
{% if operation.parameters %}
<table>
<tr><th>parameter<th>type<th>meaning
{% for each in operation.parameters %}
<tr><td><code>{{ each.name }}</code>{{ " (required)" if each.is_required }}
<td>{{ each.type }}<td>{{ each.description }}
{% endfor %}
</table>
{% endif %}
{% endfor %}
</html>
""")
