# /// script
# requires-python = ">=3.10"
# dependencies = ["pycco==0.6.0", "markdown==3.10", "pygments==2.19.2", "pystache==0.6.8"]
# ///
"""Writes the three scripts as pages, explanation beside code, by Pycco from the files as they are.

`uv run tools/docs.py` writes to docs/rendered/, or to the folder given. Pycco sets comments beside the code
that follows them; so docstrings go above what they explain, as comments. What stands in columns or indented
in them, formulas and legends, stays as it is, in monospace. Pages load nothing from a network, have two
columns on a laptop and one on a phone.
"""

import argparse, ast, re, sys
from pathlib import Path

try:
    import pycco.main
    import pycco_resources
except ModuleNotFoundError as error:
    sys.exit(f"{error}: start this with `uv run`, or install what its first lines name.")

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("sbtrpo.py", "ctrpo.py", "strpo.py")
STYLE = """
body { font: 15px/1.5 Georgia, 'DejaVu Serif', serif; background: white; }
#background, .octowrap { display: none; }
div.section { display: grid; grid-template-columns: minmax(0, 1fr) 820px; border-top: 1px solid #eef; }
div.section:first-child, #section-0 { display: block; max-width: 820px; margin: auto; border: 0; }
div.docs { float: none; min-width: 0; max-width: none; padding: 10px 24px 0; }
div.code { margin: 0; padding: 12px 20px; background: #f7f7fa; }
p { margin: 0 0 10px; }
li { margin-bottom: 6px; }
h1 small { font-size: 15px; font-weight: normal; margin-left: 1em; }
h3 { margin: 6px 0; font-size: 17px; }
pre, code, .code pre { font: 11.5px/1.5 'DejaVu Sans Mono', Menlo, Consolas, monospace; }
.docs pre { font-size: 11px; margin: 0 0 10px; padding: 6px 10px; overflow: auto; background: #f7f7fa; }
.docs p code, .docs li code { font-size: 12px; background: #f2f2f7; border: 0; padding: 0 3px; }
.highlight { overflow-x: auto; }
@media (max-width: 1100px) {
  div.section { display: block; }
  div.docs, div.code { padding: 8px 12px; }
}
"""


def markdown(docstring: str) -> list[str]:
    """Lines of Markdown: numbers make a list, columns and indentation preformatted text."""
    lines, kind = [], ""
    for line in [*docstring.split("\n"), ""]:
        before, item = kind, re.match(r" ?\d+\. ", line) or kind == "item" and line.startswith(" ")
        kind = "item" if item else "block" if re.search(r"^  |\S  +\S", line) else "text"
        if kind != before:
            lines += ["```"] * (before == "block") + [""] + ["```"] * (kind == "block")
        if kind != "block":
            line = re.sub(r"\b([A-Z])'", r"\1\\'", line)  # a prime, not a quotation mark
            line = re.sub(r"(?<![`\w-])(--[a-z][\w-]*)(?!.*`)", r"`\1`", line)  # an option, not a dash
        lines.append(line)
    return lines


def explanations_first(code: str) -> str:
    """Docstrings as comments above what they explain, sections as headings, the list of packages as code."""
    lines, packages, kinds = code.split("\n"), False, (ast.Module, ast.ClassDef, ast.FunctionDef)
    for i, line in enumerate(lines):
        packages = line.startswith("#") if packages else line == "# /// script"
        heading = re.sub(r"^# (?:[-=]+ )?(\w.*?)(?: ---)?$", r"# ### \1", line)
        lines[i] = f"#     {line[2:]}" if packages else heading * (line != "# --- end shared ---")
    nodes = [node for node in ast.walk(ast.parse(code))
             if isinstance(node, kinds) and ast.get_docstring(node)]
    for node in sorted(nodes, key=lambda node: node.body[0].lineno, reverse=True):
        text, string = markdown(ast.get_docstring(node)), node.body[0]
        del lines[string.lineno - 1 : string.end_lineno]
        start = min([d.lineno for d in getattr(node, "decorator_list", [])] + [getattr(node, "lineno", 1)])
        lines[start - 1 : start - 1] = [*(f"# {line}" for line in text), "#"]
    return "\n".join(lines)


def page(script: str) -> str:
    """The page of a script, as HTML."""
    language = pycco.main.get_language(script, "")
    sections = pycco.main.parse(explanations_first((ROOT / script).read_text()), language)
    pycco.main.highlight(sections, language, outdir="docs")
    html = pycco.main.generate_html(script, sections, outdir="docs").decode()
    links = " ".join(f'<a href="{Path(other).stem}.html">{other}</a>' for other in SCRIPTS if other != script)
    html = html.replace("<head>", '<head>\n  <meta name="viewport" content="width=device-width">')
    return html.replace("</h1>", f" <small>{links}</small></h1>", 1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "rendered", metavar="FOLDER",
                        help="where the pages go (default docs/rendered)")
    folder = parser.parse_args(argv).folder
    pages = {f"{Path(script).stem}.html": page(script) for script in SCRIPTS}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pycco.css").write_text(pycco_resources.css + STYLE)
        for name, text in pages.items():
            (folder / name).write_text(text)
            print(folder / name)
    except OSError as error:
        sys.exit(f"{folder} cannot be the folder of the pages: {error.strerror}.")


if __name__ == "__main__":
    main()
