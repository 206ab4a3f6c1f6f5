"""Results for people and programs.

One way to every reader: a result becomes a `document` (plain data, also what ``--json`` writes), the document
an `outline` (`run_report` of one run, `diff_report` of two), the outline a text by one of the `renderers`
(`terminal`, `markdown`, `html`; `charts` are drawn on the page alone). Sections come from `summary`,
`validated`, `worst`, `quality`, `layers` and `times`. `schema` turns dataclasses into JSON and back, for
documents and for `plans`. To add a format: one function from an outline to text, and one row in
`renderers.RENDERERS`.
"""
