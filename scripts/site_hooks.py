"""What mkdocs.yml leaves to code: pages from the root of the repository, links out of docs/, no network.

README.md, CONTRIBUTING.md and CHANGELOG.md stand where GitHub looks for them and are pages of the site too.
A link to another file of the repository leads to a copy of it: every link works offline or fails the build.
"""

import ast
import re
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
CORE = ROOT / "src" / "aipo" / "core"

_LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")
_EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
_CITED = re.compile(r"docs/(\w+)\.md(#[\w-]+)?")
_LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


class Docstrings(griffe.Extension):
    """Docstrings are written for readers of the code: examples are bare doctests, pages are cited by path."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Put each example of a docstring between fences, and link the pages that it cites."""
        if obj.docstring:
            text = _EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
            obj.docstring.value = _CITED.sub(r"[\g<0>](\1.md\2)", text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from the root, those of the reference, and a copy of each linked file outside docs/."""
    texts = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in ROOT_PAGES.items()}
    for page, text in (texts | {"core.md": core_page(), "api.md": api_page()}).items():
        files.append(File.generated(config, page, content=text))
    texts |= {file.src_uri: file.content_string for file in files.documentation_pages()}
    for page, text in texts.items():
        for _, target in _LINK.findall(text):
            path = repository_path(page, target)
            if path is not None and path.is_file() and files.get_file_from_path(in_site(path)) is None:
                files.append(File.generated(config, in_site(path), content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links out of docs/ to the pages and copies that `on_files` added."""

    def moved(match: re.Match[str]) -> str:
        path = repository_path(page.file.src_uri, match[2])
        if path is None:
            return match[0]
        return match[1] + relpath(in_site(path), str(PurePosixPath(page.file.src_uri).parent))

    return _LINK.sub(moved, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that needs the network to be read."""
    foreign = set()
    for path in Path(config.site_dir).rglob("*.html"):
        for address in loaded_from_elsewhere(path.read_text(encoding="utf-8")):
            foreign.add(f"{path.name} loads {address}")
    if foreign:
        raise PluginError("the site must work offline, but " + "; ".join(sorted(foreign)))


def repository_path(page: str, target: str) -> Path | None:
    """Return what a link of a page names, or None where it stays inside docs/ as it is."""
    if page in ROOT_PAGES.values():
        return ROOT / normpath(target)
    path = Path(normpath(ROOT / "docs" / PurePosixPath(page).parent / target))
    return None if path.is_relative_to(ROOT / "docs") else path


def in_site(path: Path) -> str:
    """Return where a file of the repository stands in the site: a page, or a copy, of a source as text."""
    name = path.relative_to(ROOT).as_posix()
    if name in ROOT_PAGES:
        return ROOT_PAGES[name]
    if path == CORE:
        return "core.md"
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return f"files/{name}.txt" if path.suffix in (".py", ".toml", ".sh", ".json") else f"files/{name}"


def core_page() -> str:
    """Return the reference of `core/`, one section for each of its modules."""
    modules = sorted(path.stem for path in CORE.glob("*.py") if path.stem != "__init__")
    sections = [f"::: aipo.core.{module}\n" for module in modules]
    introduction = "::: aipo.core\n    options:\n      show_root_heading: false\n"
    return "\n".join(["# The core\n", introduction, *sections])


def api_page() -> str:
    """Return the reference of the names at the top of the package, one section for each."""
    tree = ast.parse((CORE.parent / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    names = {f"{node.module}.{a.name}" for node in imports for a in node.names if a.asname}
    sections = [f"::: {name}\n" for name in sorted(names, key=lambda name: name.rpartition(".")[2].lower())]
    return "\n".join(["# The Python API\n", f"{ast.get_docstring(tree)}\n", *sections])


def loaded_from_elsewhere(page: str) -> list[str]:
    """Return the addresses from which a page would load something when it is opened."""
    found: list[str] = []

    class Loads(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            address = given.get(_LOADING.get(tag, "")) or ""
            loads = tag != "link" or given.get("rel") in ("stylesheet", "preload", "icon", "preconnect")
            if loads and address.startswith(("http:", "https:", "//")):
                found.append(address)

    Loads().feed(page)
    return found
