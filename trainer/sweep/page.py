"""Template of a sweep's ``report.html``; its style is that of the run report."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="Twofold">
<title>Twofold: {{ name }}</title>
<style>
{% include "report.css" %}
body { max-width: 1280px; }
table { font-size: 12.5px; }
th, td { padding-left: 14px; }
</style>
</head>
<body>
<header>
<h1>{{ name }}</h1>
<p class="lead">{{ table.sentence }}</p>
</header>
<main>
{% if failed %}
<p class="warning">Failed cells, left out: {{ failed | join(", ") }}.</p>
{% endif %}
{% if missing %}
<p class="warning">Rows without a finished cell: {{ missing | join(", ") }}.</p>
{% endif %}
<section>
<h2>Results</h2>
<div class="scroll">
<table>
<thead><tr>{% for heading in headings %}<th>{{ heading }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% for note in notes %}<p class="how">{{ note }}</p>{% endfor %}
</section>
{% if panels %}
<section>
<h2>Pictures</h2>
<div class="pair">
{% for panel in panels %}
<figure>
  <h3>{{ panel.title }}</h3>
  {{ panel.svg }}
  <figcaption class="how">{{ panel.caption }}</figcaption>
</figure>
{% endfor %}
</div>
</section>
{% endif %}
</main>
<footer>
<h2>Provenance</h2>
<dl class="origin">
{% for name, value in origin.items() %}
<dt>{{ name }}</dt><dd class="mono">{{ value }}</dd>
{% endfor %}
</dl>
</footer>
</body>
</html>
"""
