"""Brings pictures that lie outside the guide's folder into the site.

A page links to a picture by its place in the repository, so that it shows there too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_LINK = re.compile(r"\]\((\.\./[\w./-]+/([\w-]+\.png))\)")


def on_files(files: Any, config: Any) -> Any:
    """Add every picture that a page links to, as ``pictures/<name>``."""
    folder = Path(config.docs_dir)
    for page in folder.glob("*.md"):
        for source, name in _LINK.findall(page.read_text()):
            target = f"pictures/{name}"
            if files.get_file_from_path(target) is None:
                path = (folder / source).resolve(strict=True)
                files.append(File.generated(config, target, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point a page's links at where the site has the pictures."""
    return _LINK.sub(r"](pictures/\2)", markdown)
