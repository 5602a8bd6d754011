"""Files of the root as pages of the site, so that one link works here and on a code host; how pages look."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
SHARED = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE")  # README.md is the home page


def on_files(files: Files, config: Any) -> Files:
    """Add the shared files, in which `docs/` is the folder that they now lie in."""
    for name in SHARED:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let `../README.md` and its like lead to the shared files, which lie beside the pages here; draw the diagrams.

    A diagram is an image on a code host. Here its SVG stands in the page, so that it has the colour of the text in both
    themes; the style by which it follows the system as an image is left out.
    """
    markdown = re.sub(rf"\]\(\.\./({'|'.join(map(re.escape, SHARED))})", r"](\1", markdown)
    return re.sub(r"!\[[^\]]*\]\((diagrams/[\w-]+\.svg)\)", _drawn, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Keep each option in the text on one line, and link a picture to its file, which a small screen can enlarge."""
    blocks = re.split(r"(<pre>.*?</pre>)", html, flags=re.DOTALL)  # every second one is a block of code
    for i, text in enumerate(blocks[::2]):
        text = re.sub(r"<code>([^<]*)</code>", _with_whole_options, text)
        blocks[2 * i] = re.sub(r'(<a [^>]*>)?<img [^>]*src="([^"]+)"[^>]*>', _linked, text)
    return "".join(blocks)


def _linked(image: re.Match[str]) -> str:
    return image[0] if image[1] else f'<a href="{image[2]}">{image[0]}</a>'


def _with_whole_options(code: re.Match[str]) -> str:
    whole = re.sub(r"(?<!\S)--?\w[\w-]*", r'<span class="option">\g<0></span>', code[1])
    return f"<code>{whole}</code>"


def _drawn(image: re.Match[str]) -> str:
    svg = (ROOT / "docs" / image[1]).read_text(encoding="utf-8")
    svg = re.sub(r"<style>.*?</style>", "", svg, flags=re.DOTALL).strip()
    return f'<div class="diagram">\n{svg}\n</div>'
